"""Terms whose label is doubted: what the policy itself says of a pair moves the label, or tells how likely it is to be right.

The policy's own opinion comes from any term's cost in both orders, ``sigmoid(cost of the turned order - cost)``: for a logistic link
the probability that the link is the likelihood of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import scores
from mmalign.objectives.parts import Part, live
from mmalign.objectives.sentences.pairwise import Order, Term, ordered, shared
from mmalign.objectives.state.running import Named
from mmalign.types import Feedback, Steps, UserError


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


def remembered(term: Term, by: float) -> tuple[Callable[[Feedback], Tensor], Callable[[Steps, Tensor], Tensor], Named]:
    """Labels that move on from visit to visit of a record: what goes with ``moved(term, by)``, for records that have an id.

    Returns what ``pairwise`` takes as ``said`` (places of records in the state, -1 without an id), the survey that puts a record's moved
    label into the state, for its next visit, and the state: the probability that the first row of its pair is the better one.
    """
    state = Named()

    def said(feedback: Feedback) -> Tensor:
        count = len(feedback.rewards)
        if feedback.ids is None:
            return torch.full((count, 1), -1.0, dtype=torch.float64)
        known = torch.tensor([bool(name) for name in feedback.ids])
        return torch.where(known, state.find(feedback.ids), -1.0)[:, None]

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        order = ordered(steps, signal)
        sure = term.of(steps, order.turned()) - term.of(steps, order)
        right = ((1 - by) * order.strength + by * torch.sigmoid(sure)).mean(1)
        first = torch.where(order.sign[:, 0] > 0, right, 1 - right)
        places = order.said[0::2, 0]
        counted = (places >= 0) & (order.sign[:, 0] != 0) & shared(steps).any(1)
        state.write(places[counted], first[counted])
        return signal

    return said, survey, state


def current(feedback: Feedback, state: Named) -> Feedback:
    """The same feedback with the labels that the state holds in place of those of records that it has met."""
    if feedback.pairs is None or feedback.ids is None:
        return feedback
    given = torch.ones(len(feedback.pairs), dtype=torch.float64) if feedback.strength is None else feedback.strength.double()
    names = [feedback.ids[row] for row in feedback.pairs[:, 0].tolist()]
    kept = torch.tensor([state.values[state.places[name]] if name in state.places else torch.nan for name in names], dtype=torch.float64)
    return replace(feedback, strength=torch.where(kept.isnan() | given.isnan(), given, kept))


def posterior(
    term: Term, *, reliability: float, momentum: float
) -> tuple[Term, Callable[[Feedback], Tensor], Callable[[Steps, Tensor], Tensor], Named]:
    """``-w log q - (1 - w) log(1 - q)``, q the policy's opinion, w the probability that the label is right (RE-PO, arXiv 2509.24159).

    ``w = q h / (q h + (1 - q) (1 - h))``, without gradient; h, the reliability of whoever gave the label, is in the last channel of the
    signal. With the term come what the signal says of each row (the place of its annotator), the survey that puts h there, and the
    state: each annotator's h moves by ``momentum`` to the mean of w over the labels it gave in an update, after use.
    """
    if not 0.5 <= reliability < 1:
        raise UserError(f"reliability: got {reliability}, takes 0.5 to below 1")
    if not 0 < momentum <= 1:
        raise UserError(f"momentum: got {momentum}, takes above 0 to 1")
    state = Named(reliability)

    def said(feedback: Feedback) -> Tensor:
        return state.find([""] * len(feedback.rewards) if feedback.annotators is None else feedback.annotators)[:, None]

    def opinion(steps: Steps, order: Order, known: Tensor) -> tuple[Tensor, Tensor]:
        sure = term.of(steps, order.turned()) - term.of(steps, order)
        return sure, torch.sigmoid(sure + torch.logit(known)).detach()

    def of(steps: Steps, order: Order) -> Tensor:
        sure, right = opinion(steps, order, order.sides(order.said[:, -1:])[0])
        return right * functional.softplus(-sure) + (1 - right) * functional.softplus(sure)

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        order, places = ordered(steps, signal), signal[..., -1]
        known, of_pair, turned = state.read(places), places[0::2], ordered(steps, signal).turned()
        right = order.strength * opinion(steps, order, known[0::2])[1] + turned.strength * opinion(steps, turned, known[0::2])[1]
        counted = shared(steps) & (order.sign != 0)
        counted = counted if right.shape[1] > 1 else counted.any(1, keepdim=True)
        for place in of_pair[counted.any(1)].unique():
            mean = right[counted & (of_pair == place)].mean()
            state.write(place, (1 - momentum) * state.read(place) + momentum * mean)
        return torch.cat([signal[..., :-1], known.to(signal).unsqueeze(-1)], -1)

    return term._replace(of=of), said, survey, state
