"""How much attention keeps several subjects apart: a cost of attention maps, 0 where each subject has a place of its own.

A map says of each place of an image how much it attends to one word of a subject, as a distribution over places. The maps of one subject
(its words, in every layer) should agree, and those of two subjects should not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHARPER = 3
"""The power of a map before it is a distribution again, as FOCUS's code has it."""


def sharpened(attention: Tensor) -> Tensor:
    """Attention ``[..., P]`` to one word from P places, as a distribution over them, to the power ``SHARPER``.

    Examples:
        >>> sharpened(torch.tensor([1.0, 2.0, 0.0])).tolist()
        [0.1111111119389534, 0.8888888955116272, 0.0]
    """
    cubed = (attention / attention.amax(-1, keepdim=True).clamp(min=1e-30)) ** SHARPER
    return cubed / cubed.sum(-1, keepdim=True).clamp(min=1e-30)


def jensen_shannon(maps: Tensor) -> Tensor:
    """``H(mean of maps) - mean of H(map)`` over its most, ``log n``: 0 where all agree, 1 where no two share a place; 0 for one map.

    maps: ``[n, P]`` distributions -> 0-d.

    Examples:
        >>> apart, alike = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])
        >>> float(jensen_shannon(apart)), float(jensen_shannon(alike))
        (1.0, 0.0)
    """
    if len(maps) < 2:
        return maps.sum() * 0
    return (_entropy(maps.mean(0)) - _entropy(maps).mean()) / math.log(len(maps))


def entangled(maps: Sequence[Tensor]) -> Tensor:
    """``(mean over subjects of JS within one + 1 - JS between their means) / 2``, in 0..1; 0-d, differentiable.

    maps: of each of two subjects or more ``[n, P]`` distributions over the same places.

    Examples:
        >>> cat, dog = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> float(entangled([cat, dog])), float(entangled([cat, cat]))
        (0.0, 0.5)
        >>> float(entangled([torch.cat([cat, dog]), torch.cat([cat, dog])]))  # and neither subject knows its place
        1.0
    """
    within = torch.stack([jensen_shannon(one) for one in maps]).mean()
    return (within + 1 - jensen_shannon(torch.stack([one.mean(0) for one in maps]))) / 2


def _entropy(maps: Tensor) -> Tensor:
    return -(maps * maps.clamp(min=1e-30).log()).sum(-1)
