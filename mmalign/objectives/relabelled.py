"""Terms whose label is doubted: what the policy itself says of a pair moves the label, or tells how likely it is to be right.

The policy's own opinion comes from any term's cost in both orders, ``sigmoid(cost of the turned order - cost)``: for a logistic link
the probability that the link is the likelihood of.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import scores
from mmalign.objectives.pairwise import Order, Term, ordered, shared
from mmalign.objectives.parts import Part, live
from mmalign.objectives.running import RunningMean
from mmalign.types import Steps, UserError


def weighted_entropy() -> Part:
    """``mean of log pi over a row's steps + 1 / its length``: POWER's reward with the weight 1 / length."""
    score = scores.policy("per_step")

    def of(steps: Steps) -> Tensor:
        length = steps.mask.sum(1, keepdim=True).double()
        return score.of(steps) + live(1 / length, length > 0)

    return score._replace(of=of)


def moved(term: Term, by: float) -> Term:
    """The expected cost under a label that goes ``by`` of the way to the policy's own opinion, which has no gradient."""

    def of(steps: Steps, order: Order) -> Tensor:
        cost, turned = term.of(steps, order), term.of(steps, order.turned())
        doubt = by * torch.sigmoid(cost - turned).detach()
        return (1 - doubt) * cost + doubt * turned

    return term._replace(of=of)


def posterior(term: Term, *, reliability: float, momentum: float) -> tuple[Term, Callable[[Steps, Tensor], Tensor], RunningMean]:
    """``-w log q - (1 - w) log(1 - q)``, q the policy's opinion, w the probability that the label is right (RE-PO, arXiv 2509.24159).

    ``w = q h / (q h + (1 - q) (1 - h))``, without gradient; h, the reliability of labels, is in the last channel of the signal. With
    the term come the survey that puts it there, and the state: h moves by ``momentum`` to the mean of w at each update, after use.
    """
    if not 0.5 <= reliability < 1:
        raise UserError(f"reliability: got {reliability}, takes 0.5 to below 1")
    if not 0 < momentum <= 1:
        raise UserError(f"momentum: got {momentum}, takes above 0 to 1")
    state = RunningMean(decay=1 - momentum)
    state.load({"mean": reliability, "count": 1})

    def opinion(steps: Steps, order: Order, known: Tensor) -> tuple[Tensor, Tensor]:
        sure = term.of(steps, order.turned()) - term.of(steps, order)
        return sure, torch.sigmoid(sure + torch.logit(known)).detach()

    def of(steps: Steps, order: Order) -> Tensor:
        sure, right = opinion(steps, order, order.sides(order.said[:, -1:])[0])
        return right * functional.softplus(-sure) + (1 - right) * functional.softplus(sure)

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        order, known = ordered(steps, signal), torch.tensor(state.mean, dtype=torch.float64)
        turned = order.turned()
        right = order.strength * opinion(steps, order, known)[1] + turned.strength * opinion(steps, turned, known)[1]
        counted = shared(steps) & (order.sign != 0)
        state.update(right.expand_as(counted)[counted] if right.shape[1] > 1 else right[counted.any(1)])
        return torch.cat([signal[..., :-1], known.to(signal).expand_as(signal[..., -1:])], -1)

    return term._replace(of=of), survey, state
