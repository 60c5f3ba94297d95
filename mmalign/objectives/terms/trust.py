"""What a pair counts for: terms ``[N, 1]`` without gradient, which multiply a comparison (``pairwise.compared(weight=...)``)."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import COLLISION
from mmalign.objectives import links
from mmalign.objectives.parts import Part, bounded_exp, live
from mmalign.objectives.sentences.pairwise import Order, Term
from mmalign.types import Feedback, Steps, UserError


def likely(*, cap: bool) -> Term:
    """``exp(a_w + a_r)``, at most 1 with ``cap``; a: mean over steps of the log-probability less that of a like draw (``collision``)."""

    def of(steps: Steps, order: Order) -> Tensor:
        if "collision" not in steps.terms:
            raise UserError(f"Steps.terms: got {sorted(steps.terms)}, this method takes collision")
        cells = live((steps.log_probs - steps.terms["collision"]).detach(), steps.mask)
        mean = cells.sum(1, keepdim=True) / steps.mask.sum(1, keepdim=True).clamp(min=1)
        both = torch.stack(order.sides(mean)).sum(0)
        return bounded_exp(both.clamp(max=0) if cap else both)

    return Term(of, frozenset({COLLISION}))


def rewards(feedback: Feedback) -> Tensor:
    """``[B, 1]``: the rewards, as what a signal says of each row."""
    return feedback.rewards.detach()[:, None]


def scaled(score: Part, *, beta: float, weight: float, k: float) -> Term:
    """``-log sigmoid(b m)``, ``b = beta (1 + weight (1 - e^(-k delta)))``, delta how much more reward the better row has, at least 0."""
    if weight < 0:
        raise UserError(f"weight: got {weight}, takes 0 or more")

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        more, less = order.sides(order.said[:, :1])
        sure = -torch.expm1(-k * (more - less).clamp(min=0))
        return links.logistic((1 + weight * sure) * (better - worse), beta=beta)

    return Term(of, score.needs, score)


def asked(score: Part, *, beta: float, share: float) -> Term:
    """``-log sigmoid((beta m - (1 - w) delta) / w)``, w the ``share`` of this objective, delta what others say for the better row."""
    if not 0 < share <= 1:
        raise UserError(f"weight: got {share}, takes above 0 to 1")

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        more, less = order.sides(order.said[:, :1])
        return links.logistic((beta * (better - worse) - (1 - share) * (more - less)) / share, beta=1.0)

    return Term(of, score.needs, score)
