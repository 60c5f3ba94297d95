"""What a reward's weights are told apart by: a hash of every tensor that its function can reach."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

MOST = 100_000  # objects that are looked at
NONE = "none"


def weights_hash(reward: Any) -> str:
    """16 hex digits; ``none`` for a reward without a tensor.

    Looked at are what a function encloses and its defaults, attributes of objects, and lists and mappings of these; of modules of torch
    their parameters and buffers. Names do not count, the order does. Globals of modules are not looked at.
    """
    hasher, count = hashlib.sha256(), 0
    for value in _tensors(reward):
        whole = value.detach().cpu().contiguous()
        hasher.update(f"{whole.dtype} {tuple(whole.shape)}".encode())
        hasher.update(whole.flatten().view(torch.uint8).numpy().data if whole.numel() else b"")
        count += 1
    return hasher.hexdigest()[:16] if count else NONE


def _tensors(root: Any) -> Iterator[Tensor]:
    """Each once, in an order that follows from how the reward was made."""
    seen, waiting = dict[int, Any](), [root]  # which keeps them, so that no number is given twice
    while waiting and len(seen) < MOST:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        tensor = _as_tensor(value)
        if tensor is not None:
            yield tensor
        else:
            waiting.extend(reversed(list(_inside(value))))


def _as_tensor(value: Any) -> Tensor | None:
    import numpy

    if isinstance(value, Tensor):
        return value.dequantize() if value.is_quantized else value
    return torch.from_numpy(value.copy()) if isinstance(value, numpy.ndarray) and value.dtype.kind in "fiub" else None


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, torch.nn.Module):
        yield from value.parameters()
        yield from value.buffers()
    if isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif isinstance(value, MethodType):
        yield value.__self__
        yield value.__func__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif not isinstance(value, (str, bytes, int, float, type, torch.nn.Module)):
        yield from getattr(value, "__dict__", {}).values()


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False
