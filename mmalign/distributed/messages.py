"""What processes say to each other before they gather a block or send a message, and by what they compare what they have."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

WELL, FAILED, SHORT = 0, 1, 2
"""How a process is that sends a message."""


SOME = 64  # numbers of each tensor by which weights are told apart


class Head(NamedTuple):
    """What a process says first. how: it is. length: bytes of the message that follows. block, values: the gather that it asks for, by
    number and by that of the values; -1: none. then: the block that it needs after that; -1: it does not know. begun: whether its gather
    of ``block`` with ``values`` has begun (0 or 1)."""

    how: int
    length: int = 0
    block: int = -1
    values: int = -1
    then: int = -1
    begun: int = 0


class Begun(NamedTuple):
    """A gather that runs while something else is computed. drop: waits for it, and holds nothing of it."""

    block: int
    values: int
    drop: Callable[[], Any]


def first_asked(heads: Sequence[Head]) -> tuple[int, int] | None:
    """What the first process that asks for something asks for: all processes do this next."""
    return next(((head.block, head.values) for head in heads if head.block >= 0), None)


def alike(heads: Sequence[Head]) -> bool:
    """Whether all processes ask for one thing, are to go on to one other, and have all begun or none: so what is next may begin, too."""
    return all(head == heads[0] for head in heads)


def apart(one: Any, other: Any) -> str | None:
    """The dotted key where two JSON values differ first, "" for the values themselves; None where they are the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted(one.keys() | other.keys()):
            if (inside := apart(one.get(name), other.get(name))) is not None:
                return f".{name}{inside}"
        return None
    return None if json.dumps(one) == json.dumps(other) else ""  # as text, in which NaN is NaN


def fingerprint(value: Tensor) -> int:
    """What tensors are told apart by: a checksum of some of their numbers."""
    flat = value.detach().flatten()
    return zlib.crc32(flat[spread(len(flat)).to(flat.device)].cpu().view(torch.uint8).numpy().tobytes())


def spread(count: int) -> Tensor:
    """Places of some of ``count`` numbers, from the first to the last, by which tensors are told apart."""
    some = min(count, SOME)
    return torch.arange(some) * (count - 1) // max(some - 1, 1)
