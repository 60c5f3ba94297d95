"""Terms of a reward model's loss on pairs, ``[N, T]``: T dimensions, each compared by itself; a score is a number, and no probability."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES
from mmalign.objectives.terms.margins import REWARDS_OF_ROWS
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps

SCORE = scores.policy()


def ahead_by(share: float, *, flips: float) -> Term:
    """``-log sigmoid(s_w - s_l - share (r_w - r_l))``, r what people rated the two rows; without a share, they need no ratings.

    share: of the difference of ratings that the scores have to be apart at least. flips: part of the labels taken to be flipped.
    """
    links.not_negative(margin=share)
    compare = links.smoothed(links.ahead(links.named("logistic", beta=1.0)), flips=flips)

    def of(steps: Steps, order: Order) -> Tensor:
        return compare(*order.sides(SCORE.of(steps) - share * order.extras if share else SCORE.of(steps)))

    return Term(of, SCORE.needs, kinds=SCORES, extras=REWARDS_OF_ROWS if share else None, score=SCORE)


def or_tied(log_k: float) -> Term:
    """Rao and Kupper's model of ties, at ``k = e^log_k``: who is ahead by less than k's worth may be called neither's.

    ``P(w) = sigmoid(d - log k)``, ``P(tie) = (k^2 - 1) sigmoid(d - log k) sigmoid(-d - log k)``, d the difference of scores.

    log_k: nats, above 0.
    """
    links.positive(log_k=log_k)

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(SCORE.of(steps))
        gap = better - worse
        win, loss = functional.softplus(log_k - gap), functional.softplus(log_k + gap)
        return torch.where(order.strength == 0.5, win + loss - math.log(math.expm1(2 * log_k)), win)

    return Term(of, SCORE.needs, kinds=SCORES, score=SCORE)


def centred(weight: float) -> Term:
    """``weight (s_w + s_l)^2``: of all scores that differ by one number, those around 0.

    weight: 0 or more.
    """
    links.not_negative(centre=weight)
    return Term(lambda steps, order: weight * torch.stack(order.sides(SCORE.of(steps))).sum(0) ** 2, SCORE.needs, kinds=SCORES)


def wins(own: Tensor, other: Tensor) -> Tensor:
    """How probably rows are better than others, elementwise: ``sigmoid(s - s')``.

    own, other: scores of rows, ``[N, T]``.
    """
    return torch.sigmoid(own - other)


def wins_or_ties(own: Tensor, other: Tensor, *, log_k: float) -> Tensor:
    """``wins`` where ties count one half, ``P(w) + P(tie) / 2`` of ``or_tied``: ``P(w) + P(l) + P(tie) = 1``.

    own, other: scores of rows, ``[N, T]``. log_k: as in ``or_tied``.
    """
    return (1 + torch.sigmoid(own - other - log_k) - torch.sigmoid(other - own - log_k)) / 2
