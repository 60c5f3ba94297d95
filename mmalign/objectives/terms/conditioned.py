"""Terms that compare rows under two conditions: with and without what the prompt shows, asked for this and for that."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.needs import contrast
from mmalign.objectives import links, scores
from mmalign.objectives.parts import under
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps


def informed(name: str, *, beta: float, rows: Literal["better", "both"] = "better") -> Term:
    """``-log sigmoid(beta (d - d'))`` of the better row, or the mean over both, d' a row's log-ratio under the contrast.

    name: of the contrast. rows: the ``better`` one, or ``both``.
    """
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        gain = score.of(steps) - score.of(under(steps, name))
        better, worse = order.sides(links.logistic(gain, beta=beta))
        return better if rows == "better" else (better + worse) / 2

    return Term(of, score.needs | {contrast(name)})


def wider(name: str, *, beta: float) -> Term:
    """``-log sigmoid(beta [(d_w - d_r) - (d'_w - d'_r)])``: a margin against that of the same pair under a contrast, d' there.

    name: of the contrast.
    """
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps) - score.of(under(steps, name)))
        return links.logistic(better - worse, beta=beta)

    return Term(of, score.needs | {contrast(name)})


def reversed_under(name: str, link: links.Compare) -> Term:
    """A comparison of log-ratios under a contrast, where the worse row is the better one.

    name: of the contrast. link: a comparison of two scores.
    """
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(under(steps, name)))
        return link(worse, better)

    return Term(of, frozenset({contrast(name)}))
