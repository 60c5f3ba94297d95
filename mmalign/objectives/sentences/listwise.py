"""Sentences about whole lists: the rows of a group, in the order of their rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.objectives.parts import Part, live
from mmalign.objectives.sentences.rowwise import ANY
from mmalign.types import Feedback, Loss, Method, Steps, UserError


class Order(NamedTuple):
    """What is known of the rows of a micro-batch: R rows, and C columns of scores.

    rewards: ``[R, 1]``. below: ``[R, R, C]`` bool, row j is of i's list and worse than i, and both have this column. beside: the same,
    worse or equal, i itself too. best: ``[R, 1]`` bool, no row of its list is better, and some row is worse.
    """

    rewards: Tensor
    below: Tensor
    beside: Tensor
    best: Tensor


def lists(
    *,
    score: Part,
    value: Callable[[Tensor, Order], Tensor],
    weigh: Callable[[Tensor], Tensor],
    extra: Callable[[Steps, Order], Tensor] | None = None,
    kinds: frozenset[str] = ANY,
) -> Method:
    """``value of a row = value(scores, order)``: what the row loses to the rest of its list; plus ``extra [R, T]`` of its steps.

    score: a part, ``[R, 1 or T]``; ``objectives.scores`` has them. value: ``(scores [R, C], order) -> [R, C]``, C columns that are
    compared each by itself. weigh, kinds: as in ``types.Method``; with ``weights.sequence_mean`` the loss is the mean over rows.

    **Layout.** The signal ``[B, 1, 3]`` of a row holds 1 where its reward is known (else 0 in all), the reward, and the number of its
    group. A row without a reward, without a live step, or alone in its list says nothing, and lists stay whole (``unit="group"``).
    """

    def signal(feedback: Feedback) -> Tensor:
        known = _comparable(feedback)
        told = torch.stack([known.double(), feedback.rewards.detach().nan_to_num(0.0), feedback.group.double()], dim=-1)
        return (told * known[:, None])[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in kinds:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")
        scores = score.of(steps)
        there = steps.mask if scores.shape[1] > 1 else steps.mask.any(1, keepdim=True)
        order = _order(signal, there & (signal[:, :, 0] != 0))
        values = value(scores, order).expand_as(steps.log_probs)
        if extra is not None:
            values = values + extra(steps, order)
        return Loss(live(values, steps.mask), _metrics(scores, order, steps), steps.mask.any(1).sum())

    return Method(signal=signal, loss=loss, weigh=weigh, needs=score.needs, unit="group", kinds=kinds, keep=_comparable)


def _comparable(feedback: Feedback) -> Tensor:
    """``[B]`` bool: rows with a known reward in a list that has another such row."""
    known = ~feedback.rewards.isnan()
    same = (feedback.group[:, None] == feedback.group[None, :]) & known[None, :]
    return known & (same.sum(1) > 1)


def _order(signal: Tensor, known: Tensor) -> Order:
    """``known [R, C]``: scores that say something."""
    rewards, group = signal[:, 0, 1], signal[:, 0, 2]
    same = (group[:, None] == group[None, :])[..., None] & known[:, None] & known[None, :]
    below = same & (rewards[None, :] < rewards[:, None])[..., None]
    above = same & (rewards[None, :] > rewards[:, None])[..., None]
    best = known.any(1) & ~above.any(2).any(1) & below.any(2).any(1)
    return Order(rewards[:, None], below, same & ~above, best[:, None])


def log_sum(scores: Tensor, among: Tensor) -> Tensor:
    """``log sum_j exp(scores_j)``, of ``scores [R, R, C]`` or ``[R, C]``, over rows j that are ``among [R, R, C]`` row i, ``[R, C]``.

    0 where there is none.
    """
    some = among.any(1, keepdim=True)
    filled = torch.where(among, scores, torch.full_like(scores, -torch.inf))
    filled = torch.where(some, filled, torch.zeros_like(filled))  # a sum over nothing has no gradient to give
    return live(torch.logsumexp(filled, dim=1), some[:, 0])


@torch.no_grad()
def _metrics(scores: Tensor, order: Order, steps: Steps) -> dict[str, Tensor]:
    """Means over live rows, as 0-d tensors.

    accuracy: pairs of a row with worse ones in the order of their rewards; equal scores, and a row with none below, count one half.
    """
    right = ((scores[:, None] - scores[None, :]).sign() + 1) / 2
    count = order.below.sum((1, 2))
    per_row = torch.where(count > 0, live(right, order.below).sum((1, 2)) / count.clamp(min=1), 0.5)
    rows = steps.mask.any(1)
    return {"accuracy": live(per_row, rows).sum() / rows.sum().clamp(min=1)}
