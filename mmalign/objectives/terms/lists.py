"""What the rows of a list lose to each other, and terms beside it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.objectives import links
from mmalign.objectives.parts import DENSITIES, Term, live
from mmalign.types import Steps


class Ranking(NamedTuple):
    """What is known of the rows of a micro-batch: R rows, and C columns of scores.

    rewards: ``[R, 1]``. below: ``[R, R, C]`` bool, row j is of i's list and worse than i, and both have this column. beside: the same,
    worse or equal, i itself too. best: ``[R, 1]`` bool, no row of its list is better, and some row is worse.
    extras, surveyed: ``[R, E]`` and ``[R, S]``, what the term that is asked was told of each row, and what it found.
    """

    rewards: Tensor
    below: Tensor
    beside: Tensor
    best: Tensor
    extras: Tensor
    surveyed: Tensor


def log_sum(scores: Tensor, among: Tensor) -> Tensor:
    """``log sum_j exp(scores_j)``, of ``scores [R, R, C]`` or ``[R, C]``, over rows j that are ``among [R, R, C]`` row i, ``[R, C]``.

    0 where there is none.

    scores: of rows. among: row j is summed over for row i.
    """
    some = among.any(1, keepdim=True)
    filled = torch.where(among, scores, torch.full_like(scores, -torch.inf))
    filled = torch.where(some, filled, torch.zeros_like(filled))  # a sum over nothing has no gradient to give
    return live(torch.logsumexp(filled, dim=1), some[:, 0])


def likelihood(weight: float, *, summed: bool = False) -> list[Term[Ranking]]:
    """``-weight log pi`` of the steps of each list's best row; nothing where weight is 0.

    weight: 0 or more. summed: over a row, where weights divide.
    """
    links.not_negative(sft=weight)

    def of(steps: Steps, ranking: Ranking) -> Tensor:
        values = -weight * live(steps.log_probs, ranking.best)
        return values * steps.mask.sum(1, keepdim=True) if summed else values

    return [Term(of, kinds=DENSITIES)] if weight else []
