"""How much better a row is than its group: ``rewards [B], group [B] -> [B]``, float64, without gradient.

Held by every function here:

- NaN is a missing reward: it counts in no statistic, and its advantage is 0.
- A tied group has advantage 0. Ties are found by ``max - min``, never by the standard deviation: rounding alone gives eight
  equal rewards a standard deviation near 1e-8, and a small ``eps`` then turns it into advantages of order 1.
- A group with fewer than two known rewards has nothing to compare with: advantage 0 (TRL does this; verl lets the raw reward
  be the advantage).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmalign.types import Feedback, UserError

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


def group_mean(rewards: Tensor, group: Tensor) -> Tensor:
    """The mean of the known rewards of each row's group, ``[B]``; NaN where there is none."""
    groups = _groups(rewards, group)
    return torch.where(groups.count > 0, groups.mean, torch.nan)


def centred(rewards: Tensor, group: Tensor) -> Tensor:
    """``A_i = r_i - mean(group of i)``.

    Examples:
        >>> centred(torch.tensor([1.0, 3.0, torch.nan, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1])).tolist()  # a missing reward; a tie
        [-1.0, 1.0, 0.0, 0.0, 0.0]
    """
    groups = _groups(rewards, group)
    return torch.where(groups.known & groups.informative, groups.rewards - groups.mean, torch.zeros_like(groups.rewards))


def relative(rewards: Tensor, group: Tensor, *, eps: float = 1e-6) -> Tensor:
    """``A_i = (r_i - mean) / (mean of |r| + eps)`` over the group of i: of rewards of 0 or more, how many times the mean, less one.

    eps: in units of the reward.

    Examples:
        >>> relative(torch.tensor([3.0, 1.0, torch.nan, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]), eps=0.0).tolist()
        [0.5, -0.5, 0.0, 0.0, 0.0]
    """
    size = group_mean(rewards.abs(), group).nan_to_num(0.0)
    return centred(rewards, group) / torch.where(informative(rewards, group), size + eps, 1.0)


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """``A_i = r_i - mean(the others of i's group) = n / (n - 1) (r_i - mean(group of i))``, n the known rewards of the group.

    Examples:
        >>> leave_one_out(torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0, 0, 0])).tolist()  # 3 - 0, 0 - (3 + 0) / 2
        [3.0, -1.5, -1.5]
    """
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

    Examples:
        >>> rewards, group = torch.tensor([0.0, 2.0, 0.0, 2.0]), torch.tensor([0, 0, 0, 0])
        >>> normalised(rewards, group, unbiased=False, eps=0.0).tolist()  # (r - 1) / 1
        [-1.0, 1.0, -1.0, 1.0]
        >>> normalised(rewards, group, unbiased=True, eps=0.0)  # (r - 1) / sqrt(4 / 3)
        tensor([-0.8660,  0.8660, -0.8660,  0.8660], dtype=torch.float64)
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
    """``A`` limited to ``-largest .. largest``; None leaves it as it is.

    largest: above 0, in units of the advantage.
    """
    return advantages if largest is None else advantages.clamp(-largest, largest)


def limited(
    feedback: Feedback, *, std: Literal["group", "batch", "none"], unbiased: bool = True, eps: float = 1e-4, largest: float | None
) -> Tensor:
    """``normalised`` rewards, and then ``clip``: what policy gradients over denoising steps take.

    std, unbiased, eps: as of ``normalised``. largest: as of ``clip``.
    """
    return clip(normalised(feedback.rewards, feedback.group, std=std, unbiased=unbiased, eps=eps), largest=largest)


def best_only(
    rewards: Tensor, group: Tensor, *, std: Literal["group", "none"] = "group", unbiased: bool = True, eps: float = 1e-6
) -> Tensor:
    """``A = r_1 - r_2`` for the best row of a group, r_2 its second best, over ``std + eps``; 0 for all others, and without one best.

    The best of k rows is what counts: a row earns by how much the best would be worse without it (arXiv 2503.19595).

    std: ``none`` for no division. unbiased, eps: as in ``normalised``.
    """
    groups = _groups(rewards, group)
    low = torch.where(groups.known & groups.informative, groups.rewards, -torch.inf)
    empty = low.new_full((len(low),), -torch.inf)
    largest = empty.scatter_reduce(0, groups.index, low, "amax")[groups.index]
    second = empty.scatter_reduce(0, groups.index, torch.where(low == largest, -torch.inf, low), "amax")[groups.index]
    best = (low == largest) & low.isfinite()
    count = torch.zeros_like(low).index_add(0, groups.index, best.double())[groups.index]
    ahead = torch.where(best & (count == 1), largest - second, torch.zeros_like(low))
    if std == "none":
        return ahead
    scale = normalised(rewards, group, unbiased=unbiased, eps=eps)
    raw = centred(rewards, group)  # raw / scale is the deviation + eps, wherever the row is not at its group's mean: the best never is
    return torch.where(ahead > 0, ahead * scale / torch.where(raw == 0, 1.0, raw), torch.zeros_like(ahead))


def length_weighted(rewards: Tensor, group: Tensor, lengths: Tensor) -> Tensor:
    """``A_i = r_i - sum_j l_j r_j / sum_j l_j`` over i's group: the baseline of least variance where a score's square grows as length.

    OPO (arXiv 2505.23585). A group whose rows are all empty has none, and advantage 0.
    """
    groups = _groups(rewards, group)
    weight = torch.where(groups.known, lengths.double(), torch.zeros_like(groups.rewards))
    empty = torch.zeros_like(groups.rewards)
    total = empty.index_add(0, groups.index, weight)[groups.index]
    baseline = empty.index_add(0, groups.index, weight * groups.rewards)[groups.index] / torch.where(total > 0, total, 1.0)
    return torch.where(groups.known & groups.informative & (total > 0), groups.rewards - baseline, empty)


def decoupled(parts: Mapping[str, Tensor], group: Tensor, *, weights: Mapping[str, float], eps: float = 1e-4) -> Tensor:
    """``A = z(sum_k w_k z_group(r_k))``: each reward by its own group's mean and spread, then the sum by that of the batch.

    GDPO (arXiv 2601.05242): rewards of different scales, or different rarity, do not drown one another. A reward that a row has none of
    (NaN) counts 0 in its sum; a row without any has advantage 0.

    parts: name of a reward -> ``[B]``. weights: name -> what it counts for. eps: as in ``normalised``.
    """
    if unknown := sorted(weights.keys() - parts.keys()):
        raise UserError(f"weights: got {unknown[0]!r}, takes rewards that are there: {', '.join(parts)}")
    total = torch.zeros(group.shape, dtype=torch.float64)
    some = torch.zeros(group.shape, dtype=torch.bool)
    for name, weight in weights.items():
        total = total + weight * normalised(parts[name], group, eps=eps)
        some = some | ~parts[name].isnan()
    return normalised(torch.where(some, total, torch.nan), torch.zeros_like(group), eps=eps)


def filtered(rewards: Tensor, group: Tensor, *, keep: Literal["best_worst", "best_random", "power"], power: float = 2.0) -> Tensor:
    """``n P(i)``, ``[B]``: how often a filter would draw a row, over how often chance would (PF-PPO, arXiv 2409.06957).

    ``best_worst``: half of the draws are the group's best row, half its worst. ``best_random``: half its best, the others alike.
    ``power``: in proportion to ``|r|^power``. Rows that tie share. 1 where a group is tied; 0 where a reward is missing.

    keep: which filter. power: of ``power`` alone, above 0.
    """
    if keep not in ("best_worst", "best_random", "power") or power <= 0:
        raise UserError(f"keep, power: got {keep!r} and {power}, takes 'best_worst', 'best_random' or 'power', and a number above 0")
    groups = _groups(rewards, group)
    inside = torch.where(groups.known, groups.rewards, groups.mean)
    empty = torch.zeros_like(inside)
    largest = empty.scatter_reduce(0, groups.index, inside, "amax", include_self=False)[groups.index]
    smallest = empty.scatter_reduce(0, groups.index, inside, "amin", include_self=False)[groups.index]

    def shared(weight: Tensor) -> Tensor:
        weight = torch.where(groups.known, weight, empty)
        total = empty.index_add(0, groups.index, weight)[groups.index]
        return weight / torch.where(total > 0, total, 1.0)

    best, worst = shared((inside == largest).double()), shared((inside == smallest).double())
    if keep == "power":
        chance = shared(inside.abs() ** power)
    else:
        chance = (best + (worst if keep == "best_worst" else shared((inside != largest).double()))) / 2
    return torch.where(groups.known, torch.where(groups.informative, chance * groups.count, 1.0), empty)


def best_rows(rewards: Tensor, group: Tensor, *, best: int = 1) -> Tensor:
    """1 for the ``best`` rows of each group, and those that tie with the last of them; 0 for others, and in a tied group.

    best: how many, 1 or more.

    Examples:
        >>> best_rows(torch.tensor([0.5, 2.0, 1.0, 7.0, 8.0]), torch.tensor([0, 0, 0, 1, 1])).tolist()
        [0.0, 1.0, 0.0, 0.0, 1.0]
    """
    if best < 1:
        raise UserError(f"best: got {best}, takes 1 or more rows")
    groups = _groups(rewards, group)
    same = (groups.index[:, None] == groups.index[None, :]) & groups.known[None, :]
    ahead = (same & (groups.rewards[None, :] > groups.rewards[:, None])).sum(1)
    return (groups.known & groups.informative & (ahead < best)).double()


def ranks(values: Tensor) -> Tensor:
    """``[B]``: 1 for the smallest known value of all, as many as there are for the largest; those that tie share the mean; NaN stays.

    values: ``[B]``.

    Examples:
        >>> ranks(torch.tensor([0.5, 2.0, torch.nan, 2.0, 7.0])).tolist()
        [1.0, 2.5, nan, 2.5, 4.0]
    """
    below = (values[None, :] < values[:, None]).sum(1)
    alike = (values[None, :] == values[:, None]).sum(1)
    return torch.where(values.isnan(), torch.nan, (below + (alike + 1) / 2).double())


def extremes(rewards: Tensor, group: Tensor, *, each: int) -> Tensor:
    """``[B]`` bool: the ``each`` best and the ``each`` worst known rewards of every group; of rows that tie, the first.

    Where a group has no more than both together, all of its known rows.

    each: how many on either side, 1 or more.

    Examples:
        >>> extremes(torch.tensor([0.5, 2.0, 1.0, 7.0, 0.1]), torch.tensor([0, 0, 0, 0, 0]), each=1).tolist()
        [False, False, False, True, True]
    """
    if each < 1:
        raise UserError(f"each: got {each}, takes 1 or more rows")
    groups = _groups(rewards, group)
    kept = torch.zeros_like(groups.known)
    for number in groups.index.unique():
        rows = torch.nonzero(groups.known & (groups.index == number)).flatten()
        order = rows[groups.rewards[rows].argsort(descending=True, stable=True)]
        kept[order[:each]] = kept[order[max(len(order) - each, 0) :]] = True
    return kept


def exponential(rewards: Tensor, group: Tensor, *, temperature: float) -> Tensor:
    """``exp(r_i / temperature)`` over its mean in i's group, ``[B]``; 0 where the reward is missing.

    temperature: in units of the reward.
    """
    groups = _groups(rewards, group)
    scaled = torch.where(groups.known, groups.rewards / temperature, -torch.inf)
    empty = torch.zeros_like(groups.rewards)
    largest = torch.full_like(empty, -torch.inf).scatter_reduce(0, groups.index, scaled, "amax")[groups.index]
    weight = torch.where(groups.known, torch.where(groups.known, scaled - largest, 0.0).exp(), empty)
    total = empty.index_add(0, groups.index, weight)[groups.index]
    return weight * groups.count / torch.where(total > 0, total, 1.0)
