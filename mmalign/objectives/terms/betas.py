"""Comparisons whose beta follows the margins of the updates so far."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links
from mmalign.objectives.parts import Part, Survey, live
from mmalign.objectives.state.running import RunningMean
from mmalign.objectives.terms.pairs import Order, Term, shared
from mmalign.types import Steps

Found = tuple[Tensor, Tensor]
"""The beta of an update, 0-d, and what each of its pairs counts for, ``[N]``."""


def _following(score: Part, beta_of: Callable[[Tensor, Tensor], Found], state: RunningMean) -> Term:
    """``-log sigmoid(b m)``, b and the weights of pairs from the margins of an update: ``(margins [...], pairs [...]) -> Found``, of those
    that are known, each times how sure its label is (``2 p - 1``); pairs: whose they are, the number of pairs last."""

    def margins(steps: Steps, order: Order) -> tuple[Tensor, Tensor]:
        better, worse = order.sides(score.of(steps))
        known = shared(steps) & (order.sign != 0)
        margin = ((2 * order.strength - 1) * (better - worse)).expand_as(known)
        if steps.kind != "bound":  # the margin of a whole pair stands in all of its columns
            margin, known = live(margin, known)[:, :1], known.any(1, keepdim=True)
        return margin, known

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        beta, counts = order.sides(order.surveyed)[0].unbind(-1)
        return -counts[:, None] * functional.logsigmoid(beta[:, None] * (better - worse))

    def found(steps: Steps, order: Order) -> Tensor:
        beta, counts = beta_of(*margins(steps, order))
        return torch.stack([beta.double().expand(len(counts)), counts.double()], -1).repeat_interleave(2, 0)

    return Term(of, score.needs, survey=Survey(found, width=2, state=state), score=score)


def dynamic(score: Part, *, beta: float, share: float, decay: float, kept: float = 1.0) -> Term:
    """``b = beta max(0.01, 1 + share (M - M_0))``: M the mean of ``beta m`` over the update, M_0 its moving average, M among it.

    beta: of average pairs. share: how much b follows. decay: of the moving average. kept: the part of the pairs that count, those whose
    ``beta m`` is nearest to M_0; M is then that of these.
    """
    links.positive(beta=beta)
    usual = RunningMean(decay=decay)

    def of(margins: Tensor, known: Tensor) -> Found:
        counts = known.any(1)
        rewards = beta * margins[known]
        if not len(rewards):
            return torch.tensor(beta), counts.double()
        centre = usual.update(rewards)
        own = beta * torch.where(known, margins, 0.0).sum(1) / known.sum(1).clamp(min=1)
        nearest = _nearest((own - centre).abs(), counts, kept)
        ahead = (beta * margins[known & nearest[:, None]]).mean() - centre
        return beta * (1 + share * ahead).clamp(min=0.01), nearest * (counts.sum().double() / nearest.sum())

    return _following(score, of, usual)


def _nearest(distances: Tensor, known: Tensor, kept: float) -> Tensor:
    """``[N]`` bool: of the known pairs ``kept``, at least one, those at the smallest distances, and all that tie with the last of them.

    A tie is a ten-thousandth of the largest distance, or of one: before anything is learned all margins are 0, and two pairs are as far
    from their mean as each other, but for rounding.
    """
    count = max(1, math.floor(kept * int(known.sum())))
    own = distances[known].sort().values
    return known & (distances <= own[count - 1] + 1e-4 * own[-1].clamp(min=1.0))


def automatic(score: Part, *, weight: float, decay: float, low: float, high: float) -> Term:
    """``b = log((1 - g) / g) / mean |m|``, in ``low`` to ``high``: a pair of the usual margin is learned from with the weight g.

    weight: g, below 1/2. decay: of the moving average of ``|m|``. low, high: of b.
    """
    state = RunningMean(decay=decay)

    def of(margins: Tensor, known: Tensor) -> Found:
        usual = state.update(margins[known].abs())
        beta = torch.where(usual > 0, math.log((1 - weight) / weight) / usual.clamp(min=1e-300), high).clamp(low, high)
        return beta, known.any(1).double()

    return _following(score, of, state)
