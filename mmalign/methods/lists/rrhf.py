"""Rank Responses to align language models with Human Feedback."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import scores, weights
from mmalign.objectives.parts import DENSITIES, live
from mmalign.objectives.sentences.listwise import listwise
from mmalign.objectives.terms.lists import Ranking, likelihood
from mmalign.types import Method


def rrhf(*, sft: NotNegative = 1.0) -> Method:
    """Likelihoods in the order of rewards, by a hinge for each pair of a list; and the best row is learned as it stands. No reference.

    With p the mean log-probability of a row's steps::

        loss = mean over rows i of  sum_{j of its list, r_j < r_i} max(0, p_j - p_i)  + sft [i is best] sum_t -log pi(i, t)

    Args:
        sft: weight of the likelihood of the best row, 0 or more.

    Paper: RRHF: Rank Responses to Align Language Models with Human Feedback without tears, arXiv 2304.05302, eq. 2 to 4.

    Deviations: the paper sums over the pairs of a list, this is their mean over its rows. All rows that share the best reward are
    learned; the authors' code takes the first. The paper's length exponent is 1 here.
    """

    def value(scores: Tensor, ranking: Ranking) -> Tensor:
        gaps = torch.relu(scores[None, :] - scores[:, None])
        return live(gaps, ranking.below).sum(1)

    return listwise(
        score=scores.policy("per_step"),
        value=value,
        weigh=weights.sequence_mean,
        terms=likelihood(sft, summed=True),
        kinds=DENSITIES,
    )
