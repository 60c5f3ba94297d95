"""One kind of feedback read as another: rewards as win probabilities, pairs or thumbs; nothing here sees a policy.

A missing number stays NaN, and whatever cannot be told from what is known is NaN too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.types import Feedback, UserError


def drawn(feedback: Feedback, name: str) -> Tensor:
    """``[B]`` bool: rows that the behavior of that name drew and whose reward is known. Errors: UserError where there is none."""
    if name not in feedback.drawn:
        raise UserError(f"Feedback.drawn: got {sorted(feedback.drawn)}, this method takes rows drawn by {name!r}")
    return feedback.drawn[name] & ~feedback.rewards.isnan()


def own(feedback: Feedback) -> Tensor:
    """``[B]`` bool: rows that the current policy drew."""
    return ~torch.stack([torch.zeros_like(feedback.rewards, dtype=torch.bool), *feedback.drawn.values()]).any(0)


def siblings(feedback: Feedback) -> Tensor:
    """``[B]`` int64: rows with one number are of one branch; of one group, where the rollout has no branches."""
    return feedback.group if feedback.branch is None else feedback.branch


def wins(feedback: Feedback, *, scale: float = 1.0) -> Tensor:
    """``P(row i is better than row j)``, ``[B, B]`` float64: those given, or Bradley-Terry's from rewards in one group.

    ``sigmoid((r_i - r_j) / scale)``; NaN on the diagonal, across groups and where a reward is missing. scale: reward units of a logit.
    """
    if feedback.wins is not None:
        return feedback.wins.detach().double()
    if scale <= 0:
        raise UserError(f"scale: got {scale}, takes a number above 0")
    rewards = feedback.rewards.detach().double()
    same = feedback.group[:, None] == feedback.group[None, :]
    same.fill_diagonal_(False)
    return torch.where(same, torch.sigmoid((rewards[:, None] - rewards[None, :]) / scale), math.nan)


def win_rate(feedback: Feedback, *, scale: float = 1.0) -> Tensor:
    """Mean probability of a row to be better than another of its group, ``[B]`` float64; NaN where it was compared with none.

    scale: as in ``wins``.

    Examples:
        >>> rewards = torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)  # the third has a group of its own
        >>> win_rate(Feedback(rewards, torch.tensor([0, 0, 1]))).tolist()
        [0.5, 0.5, nan]
    """
    chances = wins(feedback, scale=scale)
    known = ~chances.isnan()
    return torch.where(known.any(1), chances.nan_to_num(0.0).sum(1) / known.sum(1).clamp(min=1), math.nan)


def labels(feedback: Feedback) -> Tensor:
    """``P(row is good)``, ``[B]`` float64: labels given; or the better row of a pair good, the other bad; or above its group's mean.

    A pair's rows get its strength and 1 - strength. From rewards: 1 above the mean of the group's known rewards, 0 below, NaN for a
    row at it (a tie says nothing) and for a row alone.
    """
    if feedback.labels is not None:
        return feedback.labels.detach().double()
    rewards = feedback.rewards.detach().double()
    if feedback.pairs is not None:
        label = torch.full_like(rewards, math.nan)
        strength = torch.ones(len(feedback.pairs)) if feedback.strength is None else feedback.strength
        label[feedback.pairs[:, 0]], label[feedback.pairs[:, 1]] = strength.double(), 1 - strength.double()
        return label
    same = (feedback.group[:, None] == feedback.group[None, :]) & ~rewards.isnan()[None, :]
    mean = (same * rewards.nan_to_num(0.0)).sum(1) / same.sum(1).clamp(min=1)
    apart = (rewards - mean).abs() > 1e-6 * rewards.nan_to_num(0.0).abs().max()
    return torch.where(apart & (same.sum(1) > 1), (rewards > mean).double(), math.nan)


def strengths(feedback: Feedback) -> Tensor:
    """Plus p for the better row of a pair, minus p for the other, ``[B]`` float64; 0 for rows that nothing is known of.

    p is ``Feedback.strength``, 1 where there is none; each row in at most one pair.

    Errors: UserError without pairs, and for a row in two of them.
    """
    return _signed(feedback, feedback.strength)


def strengths_by_score(feedback: Feedback) -> Tensor:
    """``strengths`` in each of a reward model's scores, ``[B, T]``; one for all, ``[B, 1]``, without ``Feedback.strengths``."""
    return _signed(feedback, feedback.strength)[:, None] if feedback.strengths is None else _signed(feedback, feedback.strengths)


def _signed(feedback: Feedback, probability: Tensor | None) -> Tensor:
    if feedback.pairs is None:
        raise UserError("Feedback.pairs: got None, a preference takes pairs of row numbers")
    refuse_shared_rows(feedback.pairs)
    strength = torch.ones(len(feedback.pairs)) if probability is None else probability
    strength = strength.detach().double()
    first = torch.where(strength >= 0.5, strength, strength - 1).nan_to_num(0.0)
    signed = torch.zeros(len(feedback.rewards), *strength.shape[1:], dtype=torch.float64)
    signed[feedback.pairs[:, 0]], signed[feedback.pairs[:, 1]] = first, -first
    return signed


def refuse_shared_rows(pairs: Tensor) -> None:
    """Refuses a row in more than one pair.

    pairs: ``[N, 2]`` row numbers.

    Errors: UserError for it.
    """
    rows = pairs.flatten()
    if len(rows.unique()) < len(rows):
        raise UserError("Feedback.pairs: got a row in more than one pair, takes each at most once")


def partner(feedback: Feedback, values: Tensor) -> Tensor:
    """``values [B, ...]`` of the other row of each row's pair; NaN for rows in no pair.

    values: of each row.
    """
    others = torch.full_like(values, torch.nan)
    if feedback.pairs is not None:
        others[feedback.pairs[:, 0]], others[feedback.pairs[:, 1]] = values[feedback.pairs[:, 1]], values[feedback.pairs[:, 0]]
    return others


def hard(feedback: Feedback) -> Feedback:
    """The same pairs, where a label counts by which row is the better one, however sure it is, and a tie says nothing."""
    if feedback.strength is None:
        return feedback
    sure = (feedback.strength.double() > 0.5).double()
    unknown = feedback.strength.isnan() | (feedback.strength == 0.5)
    return replace(feedback, strength=torch.where(unknown, math.nan, sure))


def by_win_rates(feedback: Feedback) -> Feedback:
    """The same pairs, as sure as ``sigmoid(P_1 - P_2)``, P how often a row beats the others of its group.

    NaN where a row was compared with none, and where nothing was known of the pair.
    """
    if feedback.pairs is None:
        return feedback
    rates = win_rate(feedback)[feedback.pairs]
    sure = torch.sigmoid(rates[:, 0] - rates[:, 1])
    return replace(feedback, strength=sure if feedback.strength is None else torch.where(feedback.strength.isnan(), math.nan, sure))


def best_and_worst(feedback: Feedback) -> Feedback:
    """The best and the worst row of every group as a pair: by reward, or by win rate where rows were compared directly.

    The strength is the first one's win probability where it is known, and 1 otherwise. A tied group, or one with fewer than two
    known rows, makes no pair. Pairs that the feedback has already stay.
    """
    if feedback.pairs is not None:
        return feedback
    scores = feedback.rewards.detach().double() if feedback.wins is None else win_rate(feedback)
    pairs = []
    for name in feedback.group.unique().tolist():
        rows = torch.nonzero((feedback.group == name) & ~scores.isnan()).flatten()
        if len(rows) > 1:
            best, worst = rows[scores[rows].argmax()], rows[scores[rows].argmin()]
            if scores[best] - scores[worst] > 1e-6 * scores[rows].abs().max():
                pairs.append([int(best), int(worst)])
    table = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    strength = torch.ones(len(table), dtype=torch.float64)
    if feedback.wins is not None and len(table):
        chance = feedback.wins[table[:, 0], table[:, 1]].double()
        strength = torch.where(chance.isnan(), strength, chance)
    return replace(feedback, pairs=table, strength=strength)


def best_with_worst(feedback: Feedback, *, scale: float = 1.0) -> Feedback:
    """All rows of every group as pairs: its best with its worst, the second best with the second worst, and so on.

    Ranked by reward, or by win rate where rows were compared directly. A strength is the first one's win probability (``wins``). Rows
    without a score, and the middle one of an odd number, are in no pair. Pairs that the feedback has already stay.

    scale: as in ``wins``.

    Examples:
        >>> ranked = best_with_worst(Feedback(torch.tensor([0.0, 3.0, 1.0, 2.0]).double(), torch.zeros(4, dtype=torch.int64)))
        >>> ranked.pairs.tolist(), [round(logit, 6) for logit in ranked.strength.logit().tolist()]
        ([[1, 0], [3, 2]], [3.0, 1.0])
    """
    if feedback.pairs is not None:
        return feedback
    scores = feedback.rewards.detach().double() if feedback.wins is None else win_rate(feedback)
    pairs = []
    for name in feedback.group.unique().tolist():
        rows = torch.nonzero((feedback.group == name) & ~scores.isnan()).flatten()
        ranked = rows[scores[rows].argsort(descending=True, stable=True)].tolist()
        pairs += list(zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False))
    table = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    chances = wins(feedback, scale=scale)
    return replace(feedback, pairs=table, strength=chances[table[:, 0], table[:, 1]])


def across(feedback: Feedback, *, by: str) -> Feedback:
    """Every row that a behavior drew against one that the current policy drew, in their order in the group.

    The better one first, by reward; the strength is its win probability where rows were compared directly, 1 where one is ahead, 0.5
    for a tie and NaN where a reward is missing. Pairs that the feedback has already stay.

    by: the behavior's name.
    """
    if feedback.pairs is not None:
        return feedback
    theirs = drawn(feedback, by)
    pairs = []
    for name in feedback.group.unique().tolist():
        inside = feedback.group == name
        ours, others = torch.nonzero(inside & own(feedback)).flatten(), torch.nonzero(inside & theirs).flatten()
        pairs += list(zip(ours.tolist(), others.tolist(), strict=False))
    return _in_order(feedback, torch.tensor(pairs, dtype=torch.int64).view(-1, 2))


def two_by_two(feedback: Feedback) -> Feedback:
    """The current policy's own rows of each group as pairs, the first with the second, and so on, in the order of ``across``."""
    if feedback.pairs is not None:
        return feedback
    pairs = []
    for name in feedback.group.unique().tolist():
        rows = torch.nonzero((feedback.group == name) & own(feedback)).flatten().tolist()
        pairs += list(zip(rows[0::2], rows[1::2], strict=False))
    return _in_order(feedback, torch.tensor(pairs, dtype=torch.int64).view(-1, 2))


def _in_order(feedback: Feedback, pairs: Tensor) -> Feedback:
    """The pairs ``[N, 2]``, each with its better row first, and how likely it is that it is."""
    if feedback.wins is not None:
        strength = feedback.wins.detach().double()[pairs[:, 0], pairs[:, 1]]
    else:
        apart = feedback.rewards.detach().double()[pairs].diff(dim=1).neg()[:, 0]
        strength = torch.where(apart.isnan(), torch.nan, (apart.sign() + 1) / 2)  # a tie is 1/2; the sign of NaN is 0
    turned = strength < 0.5
    pairs = torch.where(turned[:, None], pairs.flip(1), pairs)
    return replace(feedback, pairs=pairs, strength=torch.where(turned, 1 - strength, strength))


def with_rest(feedback: Feedback, *, by: str) -> Feedback:
    """``best_and_worst``, and the rows that a behavior drew and that are in no pair, two by two, as pairs of which nothing is known.

    An odd one out stands with any other row that is in no pair, if there is one.

    by: the behavior's name.
    """
    if feedback.pairs is not None:
        return feedback
    paired = best_and_worst(feedback)
    free = torch.ones(len(feedback.rewards), dtype=torch.bool).index_fill(0, paired.pairs.flatten(), False)  # type: ignore[union-attr]
    theirs = drawn(feedback, by) & free
    rows = torch.nonzero(theirs).flatten().tolist()
    rows += torch.nonzero(free & ~theirs).flatten().tolist()[: len(rows) % 2]
    more = torch.tensor(rows[: len(rows) // 2 * 2], dtype=torch.int64).view(-1, 2)
    unknown = torch.full((len(more),), math.nan, dtype=torch.float64)
    return replace(paired, pairs=torch.cat([paired.pairs, more]), strength=torch.cat([paired.strength, unknown]))  # type: ignore[list-item]
