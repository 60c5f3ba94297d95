"""Terms of a reward model's loss on pairs, ``[N, T]``: T dimensions, each compared by itself; a score is a number, and no probability."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES, Reading, Survey, live
from mmalign.objectives.state.running import Kept
from mmalign.objectives.terms.margins import REWARDS_OF_ROWS
from mmalign.objectives.terms.pairs import Order, Term, shared
from mmalign.types import Feedback, Steps, UserError

SCORE = scores.policy()
LEAST = 1e-3  # nats of log k: a model that has met no tie yet may meet one

Correction = Literal["smoothed", "unbiased", "likelihood"]
_CORRECTIONS = {"smoothed": links.smoothed, "unbiased": links.unbiased, "likelihood": links.likely}


def ahead_by(share: float, *, flips: float = 0.0, correction: Correction = "smoothed") -> Term:
    """``-log sigmoid(s_w - s_l - share (r_w - r_l))``, r what people rated the two rows; without a share, they need no ratings.

    share: of the difference of ratings that the scores have to be apart at least. flips: part of the labels taken to be flipped.
    correction: what is made of the loss for it, one of ``links``.
    """
    links.not_negative(margin=share)
    compare = _CORRECTIONS[correction](links.ahead(links.named("logistic", beta=1.0)), flips=flips)

    def of(steps: Steps, order: Order) -> Tensor:
        return compare(*order.sides(SCORE.of(steps) - share * order.extras if share else SCORE.of(steps)))

    return Term(of, SCORE.needs, kinds=SCORES, extras=REWARDS_OF_ROWS if share else None, score=SCORE)


def first_ahead() -> Term:
    """``-log sigmoid(s_w - s_l)`` of a row's first number, whatever the others are."""

    def ahead(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(SCORE.of(steps)[:, :1])
        return better - worse

    return Term(lambda steps, order: functional.softplus(-ahead(steps, order)), SCORE.needs, kinds=SCORES, ahead=ahead)


def or_tied(log_k: float, *, rate: float = 0.0) -> Term:
    """Rao and Kupper's model of ties, at ``k = e^log_k``: who is ahead by less than k's worth may be called neither's.

    ``P(w) = sigmoid(d - log k)``, ``P(tie) = (k^2 - 1) sigmoid(d - log k) sigmoid(-d - log k)``, d the difference of scores.

    log_k: nats, above 0. rate: how far log k goes after each update along the slope of its likelihood; its mean over an update's pairs and
    dimensions, so that it rests where there are as many ties as the model says.
    """
    links.positive(log_k=log_k)
    links.not_negative(rate=rate)
    state = Kept(log_k)

    def gap(steps: Steps, order: Order) -> Tensor:
        return torch.sub(*order.sides(SCORE.of(steps)))

    def of(steps: Steps, order: Order) -> Tensor:
        apart, k = gap(steps, order), order.surveyed[0::2] if rate else log_k
        win, loss = functional.softplus(k - apart), functional.softplus(k + apart)
        none = torch.log(torch.expm1(torch.as_tensor(2 * k, dtype=apart.dtype)))
        return torch.where(order.strength == 0.5, win + loss - none, win)

    def look(steps: Steps, order: Order) -> Tensor:
        """Log k for this update, and then a step of it."""
        now, apart, counted = state.value, gap(steps, order), shared(steps) & (order.sign != 0)
        tie = torch.sigmoid(now - apart) + torch.sigmoid(now + apart) - 2 / -math.expm1(-2 * now)
        right = order.strength * torch.sigmoid(now - apart) + (1 - order.strength) * torch.sigmoid(now + apart)
        slope = torch.where(order.strength == 0.5, tie, right)[counted]
        if len(slope):
            state.value = max(LEAST, now - rate * float(slope.mean()))
        return torch.full((len(steps), 1), now, dtype=torch.float64)

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        return {"k": order.surveyed[0::2].exp()}

    survey = Survey(look, state=state) if rate else None
    return Term(of, SCORE.needs, kinds=SCORES, score=SCORE, survey=survey, metrics=metrics if rate else None)


def centred(weight: float) -> Term:
    """``weight (s_w + s_l)^2``: of all scores that differ by one number, those around 0.

    weight: 0 or more.
    """
    links.not_negative(centre=weight)
    return Term(lambda steps, order: weight * torch.stack(order.sides(SCORE.of(steps))).sum(0) ** 2, SCORE.needs, kinds=SCORES)


def on_its_side(weight: float) -> Term:
    """``-weight log sigmoid(z s)`` of both rows, z the sign of what people rated a row; nothing of a row that they rated 0.

    weight: 0 or more. Errors: UserError of the signal for ratings in several dimensions.
    """
    links.not_negative(weight=weight)

    def signs(feedback: Feedback) -> Tensor:
        ratings = feedback.rewards[:, None] if feedback.ratings is None else feedback.ratings
        if ratings.shape[1] != 1:
            raise UserError(f"method: takes a sign of each row, and records rate {ratings.shape[1]} dimensions; takes one policy.scores")
        return ratings.detach().sign()

    def of(steps: Steps, order: Order) -> Tensor:
        cost = order.extras.abs() * functional.softplus(-order.extras * SCORE.of(steps))
        return weight * (cost[0::2] + cost[1::2])

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        """Rows on their side of 0: what it is worth as a guardrail. One that was rated 0 counts one half."""
        right, there = (torch.sign(order.extras * SCORE.of(steps)) + 1) / 2, shared(steps)
        both, count = live((right[0::2] + right[1::2]) / 2, there), there.sum(1, keepdim=True)
        return {"signs": both.sum(1, keepdim=True) / count.clamp(min=1)}

    return Term(of, SCORE.needs, kinds=SCORES, extras=Reading(signs), metrics=metrics)


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
