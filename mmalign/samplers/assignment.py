"""Which sampler draws which row of a group, where the current policy is not alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.types import Sampler, UserError


def assignment(group_size: int, samplers: Sequence[Sampler]) -> Tensor:
    """``[G]`` int64: which sampler draws each row of a group, 0 the current policy, k the k-th sampler, in this order.

    G is ``group_size`` and one for each sampler without a part of it.

    Errors: UserError for a group too small for all of them.

    Examples:
        >>> opponent, greedy = Sampler("opponent", {"ref": 1.0}, part=0.5), Sampler("greedy", {"current": 1.0}, part=0.0, greedy=True)
        >>> assignment(4, [opponent, greedy]).tolist()
        [0, 0, 1, 1, 2]
    """
    counts = [max(1, round(sampler.part * group_size)) if sampler.part else 1 for sampler in samplers]
    own = group_size - sum(count for count, sampler in zip(counts, samplers, strict=True) if sampler.part)
    if own < 1:
        names = ", ".join(sampler.name for sampler in samplers)
        raise UserError(f"batch.group: got {group_size}, takes more: the policy and {names} all draw rows of each group")
    return torch.arange(len(counts) + 1).repeat_interleave(torch.tensor([own, *counts]))


def drawn_by(who: Tensor, samplers: Sequence[Sampler]) -> dict[str, Tensor]:
    """``Rollout.drawn`` of rows that ``who [B]`` drew."""
    return {sampler.name: who == number for number, sampler in enumerate(samplers, start=1)}
