"""Rows that are seen twice: each view is to say which prototype the other one belongs to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES, Survey
from mmalign.objectives.terms.pairs import Order, Term, whole
from mmalign.types import Steps, UserError

ROWS = scores.policy()


def swapped(*, prototypes: int, weight: float, temperature: float, sharpness: float, rounds: int) -> Term:
    """``-weight / 2 sum_k [q''_k log p'_k + q'_k log p''_k]``, the mean of both rows; a row's numbers are ``s, a_1 .. a_K, b_1 .. b_K``.

    a and b are cosines of two views to K prototypes, ``p' = softmax(a / temperature)``, p'' of b, and q', q'' are what ``assigned`` makes
    of them in all rows of an update whose pair says something, without gradient.

    prototypes: K. weight: 0 or more. temperature, sharpness: above 0. rounds: of balancing.
    """
    links.not_negative(weight=weight)
    width = 1 + 2 * prototypes

    def views(steps: Steps) -> tuple[Tensor, Tensor]:
        if steps.mask.shape[1] < width or bool(steps.mask[:, width:].any()):
            got = f"is for {prototypes} prototypes, and the policy has {steps.mask.shape[1]} numbers"
            raise UserError(f"method: {got}; takes a policy of {width} names in policy.scores")
        cosines = ROWS.of(steps)[:, 1:width]
        return cosines[:, :prototypes], cosines[:, prototypes:]

    def look(steps: Steps, order: Order) -> Tensor:
        known = (whole(steps) & (order.sign != 0).any(1, keepdim=True)).flatten().repeat_interleave(2)
        found = torch.zeros(len(steps), 2 * prototypes, dtype=torch.float64)
        for place, view in enumerate(views(steps)):
            columns = slice(place * prototypes, (place + 1) * prototypes)
            found[known, columns] = assigned(view[known].double().cpu(), sharpness=sharpness, rounds=rounds)
        return found

    def of(steps: Steps, order: Order) -> Tensor:
        first, second = (((view / temperature).log_softmax(1)) for view in views(steps))
        codes = order.surveyed
        cost = -(codes[:, prototypes:] * first + codes[:, :prototypes] * second).sum(1, keepdim=True) / 2
        return weight * (cost[0::2] + cost[1::2]) / 2

    def metrics(steps: Steps, order: Order) -> dict[str, Tensor]:
        first, second = (view.argmax(1, keepdim=True) for view in views(steps))
        alike = (first == second).double()
        return {"views_agree": (alike[0::2] + alike[1::2]) / 2}

    return Term(of, ROWS.needs, kinds=SCORES, survey=Survey(look, width=2 * prototypes), metrics=metrics)


def assigned(cosines: Tensor, *, sharpness: float, rounds: int) -> Tensor:
    """``[R, K]``, rows that add up to 1: which prototype each row belongs to, all of them being taken about as often.

    ``exp(cosines * sharpness)``, its columns and then its rows brought to their sums, ``rounds`` times (Sinkhorn and Knopp; SwAV,
    arXiv 2006.09882, eq. 3 to 5, ``sharpness = 1 / epsilon``).

    cosines: ``[R, K]``. sharpness: above 0. rounds: of balancing.
    """
    logs = cosines * sharpness
    for _ in range(rounds if len(logs) else 0):
        logs = logs - logs.logsumexp(0, keepdim=True) + math.log(len(logs) / logs.shape[1])
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp()
