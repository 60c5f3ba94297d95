"""How much better a row is than its group: ``rewards [B], group [B] -> [B]``, float64, without gradient.

Held by every function here:

- NaN is a missing reward: it counts in no statistic, and its advantage is 0.
- A tied group has advantage 0. Ties are found by ``max - min``, never by the standard deviation: rounding alone gives eight
  equal rewards a standard deviation near 1e-8, and a small ``eps`` then turns it into advantages of order 1.
- A group with fewer than two known rewards has nothing to compare with: advantage 0 (TRL does this; verl lets the raw reward
  be the advantage).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmalign.types import UserError

TIE = 1e-6  # relative to the largest reward of the group: eight units in the last place of the float32 that rewards come from


@dataclass(frozen=True)
class _Groups:
    """Statistics of each row's group, ``[B]`` each, over known rewards; ``rewards`` has 0 in place of NaN."""

    rewards: Tensor
    known: Tensor
    index: Tensor
    count: Tensor
    mean: Tensor
    informative: Tensor


def _groups(rewards: Tensor, group: Tensor) -> _Groups:
    if rewards.ndim != 1 or group.shape != rewards.shape:
        raise UserError(f"advantages: got rewards {list(rewards.shape)} and group {list(group.shape)}, takes [batch] twice")
    rewards = rewards.detach().double()
    if bool(rewards.isinf().any()):
        raise UserError("rewards: got an infinite value, takes finite numbers or NaN for a missing one")
    known = ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    names, index = group.unique(return_inverse=True)
    empty = rewards.new_zeros(len(names))
    count = empty.index_add(0, index, known.double())[index]
    mean = empty.index_add(0, index, filled)[index] / count.clamp(min=1)
    # A missing row stands in with its group's mean, which is neither a new smallest nor a new largest reward.
    inside = torch.where(known, rewards, mean)
    largest = empty.scatter_reduce(0, index, inside, "amax", include_self=False)[index]
    smallest = empty.scatter_reduce(0, index, inside, "amin", include_self=False)[index]
    size = torch.maximum(largest.abs(), smallest.abs())
    return _Groups(filled, known, index, count, mean, (count > 1) & (largest - smallest > TIE * size))


def informative(rewards: Tensor, group: Tensor) -> Tensor:
    """``[B]`` bool: rows with a known reward in a group that is not tied, the only ones with an advantage other than 0."""
    groups = _groups(rewards, group)
    return groups.known & groups.informative


def centred(rewards: Tensor, group: Tensor) -> Tensor:
    """``A_i = r_i - mean(group of i)``."""
    groups = _groups(rewards, group)
    return torch.where(groups.known & groups.informative, groups.rewards - groups.mean, torch.zeros_like(groups.rewards))


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """``A_i = r_i - mean(the others of i's group) = n / (n - 1) (r_i - mean(group of i))``, n the known rewards of the group."""
    count = _groups(rewards, group).count
    return centred(rewards, group) * count / (count - 1).clamp(min=1)


def normalised(
    rewards: Tensor, group: Tensor, *, std: Literal["group", "batch", "none"] = "group", unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    """``A_i = (r_i - mean(group of i)) / (std + eps)``.

    std: ``group``, the standard deviation of i's group; ``batch``, that of all known rewards of the batch, between-group
        differences included (Flow-GRPO, TRL's ``scale_rewards="batch"``); ``none``, no division.
    unbiased: divide squares by ``n - 1`` (torch, TRL, verl) or by ``n`` (numpy, flow_grpo). In groups of 2 that is a factor
        1.41 in every advantage.
    eps: added to the standard deviation, in units of the reward.
    """
    if std not in ("group", "batch", "none"):
        raise UserError(f"std: got {std!r}, takes 'group', 'batch' or 'none'")
    advantages = centred(rewards, group)
    if std == "none":
        return advantages
    groups = _groups(rewards, group)
    index = groups.index if std == "group" else torch.zeros_like(groups.index)
    empty = advantages.new_zeros(len(index))
    count = empty.index_add(0, index, groups.known.double())[index]
    mean = empty.index_add(0, index, groups.rewards)[index] / count.clamp(min=1)
    squares = torch.where(groups.known, (groups.rewards - mean) ** 2, torch.zeros_like(mean))
    deviation = (empty.index_add(0, index, squares)[index] / (count - int(unbiased)).clamp(min=1)).sqrt()
    # An uninformative row's advantage is 0 already; its deviation may be 0 too, and 0 / 0 is not 0.
    return torch.where(advantages == 0, advantages, advantages / (deviation + eps))


def clip(advantages: Tensor, *, largest: float | None) -> Tensor:
    """``A`` limited to ``-largest .. largest``; None leaves it as it is."""
    return advantages if largest is None else advantages.clamp(-largest, largest)
