"""Which behavior draws which row of a group, where the current policy is not alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.types import Behavior, UserError


def assignment(group_size: int, behaviors: Sequence[Behavior]) -> Tensor:
    """``[G]`` int64: which behavior draws each row of a group, 0 the current policy, k the k-th behavior, in this order.

    G is ``group_size`` and one for each behavior without a part of it.

    Errors: UserError for a group too small for all of them.

    Examples:
        >>> opponent, greedy = Behavior("opponent", {"ref": 1.0}, part=0.5), Behavior("greedy", {"current": 1.0}, part=0.0, greedy=True)
        >>> assignment(4, [opponent, greedy]).tolist()
        [0, 0, 1, 1, 2]
    """
    counts = [max(1, round(behavior.part * group_size)) if behavior.part else 1 for behavior in behaviors]
    own = group_size - sum(count for count, behavior in zip(counts, behaviors, strict=True) if behavior.part)
    if own < 1:
        names = ", ".join(behavior.name for behavior in behaviors)
        raise UserError(f"batch.group: got {group_size}, takes more: the policy and {names} all draw rows of each group")
    return torch.arange(len(counts) + 1).repeat_interleave(torch.tensor([own, *counts]))


def drawn_by(who: Tensor, behaviors: Sequence[Behavior]) -> dict[str, Tensor]:
    """``Rollout.drawn`` of rows that ``who [B]`` drew."""
    return {behavior.name: who == number for number, behavior in enumerate(behaviors, start=1)}
