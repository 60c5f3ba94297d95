"""Preference Ranking Optimization."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import scores, weights
from mmalign.objectives.parts import DENSITIES, live
from mmalign.objectives.sentences.listwise import listwise
from mmalign.objectives.terms.lists import Ranking, likelihood, log_sum
from mmalign.types import Method


def pro(*, sft: NotNegative = 0.05, temperature: bool = True) -> Method:
    """Each row of a list against all that are worse, the more sharply the farther apart their rewards are. No reference.

    With p the mean log-probability of a row's steps, and over the rows j that are worse than i
    ``T_ij = 1 / (r_i - r_j)``, ``T_ii = min_j T_ij``::

        loss = mean over rows i of  log(exp(p_i / T_ii) + sum_j exp(p_j / T_ij)) - p_i / T_ii  + sft [i is best] mean_t -log pi(i, t)

    Args:
        sft: weight of the likelihood of the best row, 0 or more.
        temperature: as above; False has T = 1.

    Paper: Preference Ranking Optimization for Human Alignment, arXiv 2306.17492, eq. 5 to 8.

    Deviations: the paper sums over the places of a list, this is their mean over its rows; a row with nothing below adds 0. ``sft``
    scales with the length of a list in the authors' scripts, ``.05 (n - 1)^2``; their code takes log(1e-10 + sum exp).
    """

    def value(scores: Tensor, ranking: Ranking) -> Tensor:
        apart = (ranking.rewards - ranking.rewards.T)[..., None] if temperature else torch.ones_like(scores[:, None])
        gaps = live(apart.expand_as(ranking.below), ranking.below)
        own = scores * gaps.amax(1)
        rest = log_sum(scores[None] * gaps, ranking.below)
        return live(functional.softplus(rest - own), ranking.below.any(1))

    return listwise(
        score=scores.policy("per_step"),
        value=value,
        weigh=weights.sequence_mean,
        terms=likelihood(sft),
        kinds=DENSITIES,
    )
