"""Terms whose label is doubted: what the policy itself says of a pair moves the label, or tells how likely it is to be right.

The policy's own opinion comes from any term's cost in both orders, ``sigmoid(cost of the turned order - cost)``: for a logistic link
the probability that the link is the likelihood of. Both take a term that is told nothing and surveys nothing itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import scores
from mmalign.objectives.parts import Part, Reading, Survey, live
from mmalign.objectives.state.running import Named
from mmalign.objectives.terms.pairs import Order, Term, shared
from mmalign.types import Feedback, Steps, UserError


def weighted_entropy() -> Part:
    """``mean of log pi over a row's steps + 1 / its length``: POWER's reward with the weight 1 / length."""
    score = scores.policy("per_step")

    def of(steps: Steps) -> Tensor:
        length = steps.mask.sum(1, keepdim=True).double()
        return score.of(steps) + live(1 / length, length > 0)

    return score._replace(of=of)


def _sureness(term: Term, steps: Steps, order: Order) -> Tensor:
    """By how much the order costs less than the turned one, ``[N, 1 or T]``."""
    assert term.extras is None and term.survey is None
    return term.of(steps, order.turned()) - term.of(steps, order)


def moved(term: Term, by: float) -> Term:
    """The expected cost under a label that goes ``by`` of the way to the policy's own opinion, which has no gradient.

    Labels of records with an id move on from visit to visit: the survey puts a record's moved label into the state, the probability
    that the first row of its pair is the better one, and it stands in place of the given one at the next visit.

    term: whose cost tells the opinion. by: 0 to 1.
    """
    state = Named()

    def of(steps: Steps, order: Order) -> Tensor:
        cost, turned = term.of(steps, order), term.of(steps, order.turned())
        doubt = by * torch.sigmoid(cost - turned).detach()
        return (1 - doubt) * cost + doubt * turned

    def places(feedback: Feedback) -> Tensor:
        """Where each row's record stands in the state, -1 without an id."""
        if feedback.ids is None:
            return torch.full((len(feedback.rewards), 1), -1.0, dtype=torch.float64)
        known = torch.tensor([bool(name) for name in feedback.ids])
        return torch.where(known, state.find(feedback.ids), -1.0)[:, None]

    def remember(steps: Steps, order: Order) -> Tensor:
        right = ((1 - by) * order.strength + by * torch.sigmoid(_sureness(term, steps, order))).mean(1)
        first = torch.where(order.sign[:, 0] > 0, right, 1 - right)
        place = order.extras[0::2, 0]
        counted = (place >= 0) & (order.sign[:, 0] != 0) & shared(steps).any(1)
        state.write(place[counted], first[counted])
        return order.surveyed

    survey = Survey(remember, width=0, state=state)
    return replace(term, of=of, extras=Reading(places), survey=survey, labels=lambda feedback: _remembered(feedback, state))


def _remembered(feedback: Feedback, state: Named) -> Feedback:
    """The same feedback with the labels that the state holds in place of those of records that it has met."""
    if feedback.pairs is None or feedback.ids is None:
        return feedback
    labels = torch.ones(len(feedback.pairs), dtype=torch.float64) if feedback.strength is None else feedback.strength.double()
    names = [feedback.ids[row] for row in feedback.pairs[:, 0].tolist()]
    known = [state.values[state.places[name]] if name in state.places else torch.nan for name in names]
    remembered = torch.tensor(known, dtype=torch.float64)
    return replace(feedback, strength=torch.where(remembered.isnan() | labels.isnan(), labels, remembered))


def posterior(term: Term, *, reliability: float, momentum: float) -> Term:
    """``-w log q - (1 - w) log(1 - q)``, q the policy's opinion, w the probability that the label is right (RE-PO, arXiv 2509.24159).

    ``w = q h / (q h + (1 - q) (1 - h))``, without gradient; h is the reliability of whoever gave the label, which the survey looks up:
    each annotator's h moves by ``momentum`` to the mean of w over the labels it gave in an update, after use.

    term: whose cost tells the opinion. reliability: h of an annotator at the start, 0.5 to below 1. momentum: above 0, to 1.

    Errors: UserError for numbers out of range.
    """
    if not 0.5 <= reliability < 1:
        raise UserError(f"reliability: got {reliability}, takes 0.5 to below 1")
    if not 0 < momentum <= 1:
        raise UserError(f"momentum: got {momentum}, takes above 0 to 1")
    state = Named(reliability)

    def places(feedback: Feedback) -> Tensor:
        """Where each row's annotator stands in the state."""
        return state.find([""] * len(feedback.rewards) if feedback.annotators is None else feedback.annotators)[:, None]

    def right(sure: Tensor, reliable: Tensor) -> Tensor:
        return torch.sigmoid(sure + torch.logit(reliable)).detach()

    def of(steps: Steps, order: Order) -> Tensor:
        sure = _sureness(term, steps, order)
        likely = right(sure, order.sides(order.surveyed)[0])
        return likely * functional.softplus(-sure) + (1 - likely) * functional.softplus(sure)

    def look_up(steps: Steps, order: Order) -> Tensor:
        reliable, turned, place = state.read(order.extras), order.turned(), order.extras[0::2]
        likely = order.strength * right(_sureness(term, steps, order), reliable[0::2])
        likely = likely + turned.strength * right(_sureness(term, steps, turned), reliable[0::2])
        counted = shared(steps) & (order.sign != 0)
        counted = counted if likely.shape[1] > 1 else counted.any(1, keepdim=True)
        for one in place[counted.any(1)].unique():
            mean = likely[counted & (place == one)].mean()
            state.write(one, (1 - momentum) * state.read(one) + momentum * mean)
        return reliable

    return replace(term, of=of, extras=Reading(places), survey=Survey(look_up, state=state))
