"""Pictures that come beside the outputs: reference images of a subject, and the images that were edited."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmalign.rewards._shared.completions import answers
from mmalign.types import UserError

Pictures = Callable[[list[Any], Mapping[str, Any]], list[list[Tensor]]]


def pictures(owner: str, path: str | None, *, key: str, column: str) -> Pictures:
    """(prompts, columns) -> for each prompt its pictures ``[3, H, W]`` in 0..1, at least one.

    A column holds, for each prompt, a path, a tensor ``[3, H, W]``, or a list of such; a file of JSON lines the same, but for tensors.
    Errors: UserError for a prompt without any, and for a picture that cannot be used.
    """
    find = answers(owner, path, key=key, column=column) if path is not None else None

    def held(prompts: list[Any], columns: Mapping[str, Any]) -> list[list[Tensor]]:
        if column in columns:
            return [_each(owner, column, item) for item in columns[column]]
        if find is None:
            raise UserError(f"{owner}: got no column {column!r} and no path, takes one of them")
        return [_each(owner, column, _listed(answer)) for answer in find(prompts, {})]

    return held


def _listed(answer: str) -> Any:
    try:
        return json.loads(answer) if answer.startswith("[") else answer
    except ValueError:
        return answer  # a path that begins with a bracket


def _each(owner: str, column: str, item: Any) -> list[Tensor]:
    from mmalign.media import Limits, image

    items: Sequence[Any] = item if isinstance(item, (list, tuple)) else [item]
    if not items:
        raise UserError(f"{owner}.{column}: got no picture for a prompt, takes at least one")
    return [one if isinstance(one, Tensor) and one.ndim == 3 else image(one, Limits(animated="first")) for one in items]
