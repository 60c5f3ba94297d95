"""Prompts of a pipeline, encoded once for all of its calls: encoders are frozen, and replays ask again and again."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.calls.interception import instead

__all__: list[str] = []  # no policy


@contextmanager
def encoded_once(pipe: Any, together: list[str], memory: dict[Any, Any], keep: int = 32) -> Iterator[None]:
    """``encode_prompt`` answers from memory while the block lasts: the encoders are frozen, and replays ask again and again.

    together: the distinct prompts of a whole rollout. A call whose prompts are all among them encodes these once, together, and
    looks its rows up, so that padding is the same in every call; this needs an encoder whose every output has one entry for
    each prompt and that takes them all at once. Other calls are remembered as they are, by the content of their arguments,
    images and tensors included.
    """
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None:
        yield
        return
    names = list(inspect.signature(encode).parameters)

    def ask(arguments: dict[str, Any]) -> Any:
        key = _content(arguments)
        if key not in memory:
            while len(memory) >= keep:
                memory.pop(next(iter(memory)))
            with torch.no_grad():
                memory[key] = encode(**arguments)
        return memory[key]

    @functools.wraps(encode)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        prompt = arguments.get("prompt")
        prompts: Any = [prompt] if isinstance(prompt, str) else prompt
        rows = isinstance(prompts, list) and all(isinstance(p, str) and p in together for p in prompts)
        others = [value for name, value in arguments.items() if name != "prompt" and isinstance(value, (list, tuple))]
        words_alone = not any(_is_media(value) for value in arguments.values())
        if rows and words_alone and all(_beside_all(value, prompts, together) for value in others):
            of_all = {"prompt": list(together), **({"batch_size": len(together)} if "batch_size" in arguments else {})}
            try:
                embeddings = ask(
                    {
                        name: of_all.get(name, _beside_all(value, prompts, together) if isinstance(value, (list, tuple)) else value)
                        for name, value in arguments.items()
                    }
                )
            except (IndexError, RuntimeError, TypeError, ValueError):  # one prompt at a time, or a list of another length beside them
                embeddings = None
            if embeddings is not None and _one_each(embeddings, len(together)):
                return _pick(embeddings, [together.index(p) for p in prompts])
        return ask(arguments)

    with instead(pipe, "encode_prompt", remembered):
        yield


def _beside_all(value: list[Any] | tuple[Any, ...], prompts: list[str], together: list[str]) -> list[Any] | None:
    """A list beside the prompts as one beside all of the rollout: the prompts again, or one value for each; None for any other list."""
    if list(value) == prompts:
        return list(together)
    return list(value[:1]) * len(together) if len(value) == len(prompts) and all(item == value[0] for item in value) else None


def _is_media(value: Any) -> bool:
    return isinstance(value, Tensor) or getattr(value, "tobytes", None) is not None


def _content(value: Any) -> Any:
    """A key that is equal where the content is."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (
            "tensor",
            tuple(value.shape),
            str(value.dtype),
            hashlib.sha1(value.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        )
    if isinstance(value, Mapping):
        return tuple(sorted((name, _content(item)) for name, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_content(item) for item in value)
    if isinstance(value, (str, int, float, bool, type(None), torch.device, torch.dtype)):
        return repr(value)
    media = getattr(value, "tobytes", None)  # a PIL image or an array
    return (type(value).__name__, hashlib.sha1(media()).hexdigest() if media else id(value))


def _one_each(embeddings: Any, count: int) -> bool:
    parts = embeddings if isinstance(embeddings, tuple) else (embeddings,)
    return all(part is None or (isinstance(part, (Tensor, list)) and len(part) == count) for part in parts)


def _pick(embeddings: Any, rows: list[int]) -> Any:
    if isinstance(embeddings, tuple):
        return tuple(_pick(part, rows) for part in embeddings)
    if isinstance(embeddings, Tensor):
        return embeddings[torch.tensor(rows, device=embeddings.device)]
    return None if embeddings is None else [embeddings[row] for row in rows]
