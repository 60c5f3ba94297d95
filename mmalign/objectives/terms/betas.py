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


def _following(score: Part, beta_of: Callable[[Tensor], Tensor], state: RunningMean) -> Term:
    """``-log sigmoid(b m)``, b from the margins ``[...]`` of an update's known pairs, each times how sure its label is (``2 p - 1``)."""

    def margins(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        known = shared(steps) & (order.sign != 0)
        margin = ((2 * order.strength - 1) * (better - worse)).expand_as(known)
        return margin[known] if steps.kind == "bound" else live(margin, known)[known.any(1), 0]

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        return -functional.logsigmoid(order.sides(order.surveyed)[0] * (better - worse))

    def found(steps: Steps, order: Order) -> Tensor:
        return beta_of(margins(steps, order)).double().expand(len(steps), 1)

    return Term(of, score.needs, survey=Survey(found, state=state), score=score)


def dynamic(score: Part, *, beta: float, share: float, decay: float) -> Term:
    """``b = beta max(0.01, 1 + share (M - M_0))``: M the mean of ``beta m`` over the update, M_0 its moving average, M among it.

    beta: of average pairs. share: how much b follows. decay: of the moving average.
    """
    links.positive(beta=beta)
    state = RunningMean(decay=decay)

    def of(margins: Tensor) -> Tensor:
        rewards = beta * margins
        ahead = rewards.mean() - state.update(rewards) if len(rewards) else torch.zeros(())
        return beta * (1 + share * ahead).clamp(min=0.01)

    return _following(score, of, state)


def automatic(score: Part, *, weight: float, decay: float, low: float, high: float) -> Term:
    """``b = log((1 - g) / g) / mean |m|``, in ``low`` to ``high``: a pair of the usual margin is learned from with the weight g.

    weight: g, below 1/2. decay: of the moving average of ``|m|``. low, high: of b.
    """
    state = RunningMean(decay=decay)

    def of(margins: Tensor) -> Tensor:
        usual = state.update(margins.abs())
        return torch.where(usual > 0, math.log((1 - weight) / weight) / usual.clamp(min=1e-300), high).clamp(low, high)

    return _following(score, of, state)
