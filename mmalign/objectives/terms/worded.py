"""Pairs compared by a score that words stand before: what these cost is learned beside."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps

ROWS = scores.policy()


def ahead_after_words(*, said: float, told: float) -> Term:
    """``-log sigmoid(s_w - s_l) + said (a_w + a_l) / 2 + told (o_w + o_l) / 2`` of a row's numbers ``s, a, o``, which others are not read.

    A row without some of the numbers has 0 in their place. said, told: 0 or more.
    """
    links.not_negative(said=said, told=told)

    def ahead(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(ROWS.of(steps))
        return better[:, :1] - worse[:, :1]

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(ROWS.of(steps))
        costs = functional.pad((better + worse) / 2, (0, 2))
        return functional.softplus(-ahead(steps, order)) + said * costs[:, 1:2] + told * costs[:, 2:3]

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        better, worse = order.sides(ROWS.of(steps))
        costs = functional.pad((better + worse) / 2, (0, 2))
        return {"said": costs[:, 1:2], "told": costs[:, 2:3]}

    return Term(of, ROWS.needs, kinds=SCORES, ahead=ahead, metrics=metrics)
