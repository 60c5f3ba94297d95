"""Reward models of rankings."""

from __future__ import annotations

from torch import Tensor

from mmalign.objectives import scores, weights
from mmalign.objectives.parts import SCORES, live
from mmalign.objectives.sentences.listwise import listwise
from mmalign.objectives.terms.lists import Ranking, log_sum
from mmalign.types import Method


def list_mle() -> Method:
    """A score for every output, so that a ranking is a series of choices: the best of all, then the best of the rest, and so on.

    With s the scores, in each dimension that is scored::

        loss = mean over rows i of  log sum_{j not better than i} exp(s_j) - s_i

    Paper: Listwise Approach to Learning to Rank (ListMLE), Xia et al. 2008, eq. 6, which is Plackett and Luce's likelihood.

    Deviations: a mean over rows in place of the sum over places, and ties as of ``plackett_luce``, whose loss this is with a model's
    scores in place of log-ratios.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.list_mle(), torch.ones(2, 1).bool()
        >>> steps = Steps(torch.tensor([[1.5], [0.5]]).double(), mask, kind="score")
        >>> feedback = Feedback(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0]))
        >>> method.loss(steps, method.signal(feedback)).values[0]  # of two, the better one's is Bradley-Terry's
        tensor([0.3133], dtype=torch.float64)
    """

    def value(scores: Tensor, ranking: Ranking) -> Tensor:
        return live(log_sum(scores, ranking.beside) - scores, ranking.beside.any(1))

    return listwise(score=scores.policy(), value=value, weigh=weights.sequence_mean, kinds=SCORES)
