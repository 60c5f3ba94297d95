"""Pictures that come beside the outputs: reference images of a subject, and the images that were edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmalign.rewards._shared.scorer import column_of
from mmalign.types import UserError

Pictures = Callable[[list[Any], Mapping[str, Any]], list[list[Tensor]]]


def pictures(owner: str, column: str) -> Pictures:
    """(prompts, columns) -> for each prompt its pictures ``[3, H, W]`` in 0..1, at least one.

    The column holds, for each prompt, a path, a tensor ``[3, H, W]``, or a list of such.

    Errors: UserError where there is no such
    column, for a prompt without any, and for a picture that cannot be used.
    """
    return lambda prompts, columns: [_each(owner, column, item) for item in column_of(owner, column, columns)]


def _each(owner: str, column: str, item: Any) -> list[Tensor]:
    from mmalign.media import Limits, image

    items: Sequence[Any] = item if isinstance(item, (list, tuple)) else [item]
    if not items:
        raise UserError(f"{owner}.{column}: got no picture for a prompt, takes at least one")
    return [one if isinstance(one, Tensor) and one.ndim == 3 else image(one, Limits(animated="first")) for one in items]
