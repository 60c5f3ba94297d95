"""DPO on rankings."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.objectives import scores, weights
from mmalign.objectives.parts import live
from mmalign.objectives.sentences.listwise import listwise
from mmalign.objectives.terms.lists import Ranking, log_sum
from mmalign.types import Method


def plackett_luce(*, beta: Positive = 0.1) -> Method:
    """A ranking as a series of choices: the best of all, then the best of the rest, and so on; DPO's reward says how likely each is.

    With ``s = beta (log pi - log ref)`` of the whole row::

        loss = mean over rows i of  log sum_{j not better than i} exp(s_j) - s_i

    Args:
        beta: how much a nat counts.

    Paper: Direct Preference Optimization, arXiv 2305.18290, eq. 20 (appendix A.3).

    Deviations: the paper sums over the places of a list; here it is a mean over rows, so that long lists weigh more and a list of two
    weighs as two rows, of which the worse one adds 0: half of DPO's loss. Rows with equal rewards share their place: each
    competes with the others at it (Breslow's handling of ties).
    """

    def value(scores: Tensor, ranking: Ranking) -> Tensor:
        return live(log_sum(beta * scores, ranking.beside) - beta * scores, ranking.beside.any(1))

    return listwise(score=scores.ratio("total"), value=value, weigh=weights.sequence_mean)
