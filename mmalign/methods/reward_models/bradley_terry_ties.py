"""Reward models of comparisons that may end in a tie."""

from __future__ import annotations

import math
from typing import Annotated

from mmalign.arguments.ranges import NotNegative, within
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated
from mmalign.types import Method


def bradley_terry_ties(
    *, k: Annotated[float, within(1, above=True)] = 5.0, rate: NotNegative = 0.0, centre: NotNegative = 0.0
) -> Method:  # fmt: skip
    """Bradley-Terry with a place for ties: they are data of their own, and not half a preference.

    With ``d = s_w - s_l``, in each dimension that is scored::

        loss = mean over pairs of  -log sigmoid(d - log k)                                              for a preference
                                   -log [(k^2 - 1) sigmoid(d - log k) sigmoid(-d - log k)]              for a tie
               + centre (s_w + s_l)^2

    Args:
        k: how much better a row has to be to be told apart: at equal scores a tie has the probability (k - 1) / (k + 1).
        rate: of k, which then follows the records: after each update log k goes by so much along the slope of its likelihood, which is at
            most 1 without ties (0.3 gets there within some tens of updates). In the log, and in checkpoints. 0 keeps k as it is.
        centre: as of ``bradley_terry``.

    Paper: Improving Video Generation with Human Feedback (VideoReward), arXiv 2501.13918, sec. 3.2, after Rao and Kupper 1967.

    Deviations: the paper's k is fixed; that it may be fitted is Rao and Kupper's. A soft label
    counts as so much of either order; a tie is a strength of 0.5 exactly.

    Dialects:
    - VideoAlign: k=5.0: its ``BTT`` loss.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_ties(k=3.0), torch.tensor([[True], [True]])
        >>> steps = Steps(torch.zeros(2, 1).double(), mask, kind="score")
        >>> pairs, strength = torch.tensor([[0, 1]]), torch.tensor([0.5]).double()
        >>> tie = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=pairs, strength=strength)
        >>> loss = method.loss(steps, method.signal(tie)).values[0, 0]
        >>> round(float((-loss).exp()), 4)  # (k - 1) / (k + 1)
        0.5
    """
    terms = [rated.or_tied(math.log(k), rate=rate), *([rated.centred(centre)] if centre else [])]
    return pairwise(*terms, kinds=SCORES, wins=lambda own, other: rated.wins_or_ties(own, other, log_k=math.log(k)))
