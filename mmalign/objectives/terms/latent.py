"""Pairs compared by whoever said so: a score that depends on a Gaussian latent of theirs, of which a row's numbers say how it depends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.objectives.terms.uncertain import LOG_WEIGHTS, NODES
from mmalign.types import Steps

ROWS = scores.policy()


def evidence(*, kl: float) -> Term:
    """``-E_q log sigmoid(s_w - s_l) + kl KL(q | N(0, 1))`` of a row's numbers ``m, KL, l_1 .. l_d``: ``s = m + sum_j l_j e_j``.

    e is standard normal, and the same for both rows, so that the difference has the variance ``|l_w - l_l|^2``; the mean over it is by
    quadrature. A row without some of the numbers has 0 in their place.

    kl: what the divergence counts, 0 or more.
    """
    links.not_negative(kl=kl)

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(ROWS.of(steps))
        std = torch.linalg.vector_norm(better[:, 2:] - worse[:, 2:], dim=1, keepdim=True)
        gaps = better[:, :1] - worse[:, :1] + std * NODES
        likely = (LOG_WEIGHTS.exp() * functional.logsigmoid(gaps)).sum(1, keepdim=True)
        return -likely + kl * ((better + worse)[:, 1:2] / 2).sum(1, keepdim=True)

    def ahead(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(ROWS.of(steps))
        return better[:, :1] - worse[:, :1]

    return Term(of, ROWS.needs, kinds=SCORES, ahead=ahead)
