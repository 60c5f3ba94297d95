"""Reward models of comparisons."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Fraction, Half, NotNegative
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated, several
from mmalign.types import Method


def bradley_terry(
    *, margin: NotNegative = 0.0, centre: NotNegative = 0.0, smoothing: Half = 0.0,
    correction: Literal["smoothed", "unbiased", "likelihood"] = "smoothed", bagging: Fraction = 1.0,
) -> Method:  # fmt: skip
    """A score for every output, so that the difference of two says how probably people prefer the one.

    With s the scores and p the strength of a preference, in each dimension that is scored::

        d = s_w - s_l - margin (r_w - r_l),    l(d) = -log sigmoid(d)
        loss = mean over pairs of  p L(d) + (1 - p) L(-d)  + centre (s_w + s_l)^2
        L(d) = (1 - e) l(d) + e l(-d)                         smoothed, the default; e is ``smoothing``
               [(1 - e) l(d) - e l(-d)] / (1 - 2 e)           unbiased
               -log [(1 - e) sigmoid(d) + e sigmoid(-d)]      likelihood

    Args:
        margin: how far scores have to be apart, as a share of the difference of the records' own ratings r (Llama 2's margin; pairs
            without ratings are then left out). 0 takes pairs as they are. Where the ratings are the mean of several raters or of an
            ensemble of reward models (``mm.data.rejudged``), this is the adaptive margin mu of Secrets of RLHF II.
        centre: keeps scores around 0, which comparisons alone leave open; 0.01 is usual.
        smoothing: part of the labels taken to be flipped.
        correction: what is made of it. ``smoothed`` pulls scores that are far apart together; ``unbiased`` has the mean of the clean
            loss, and no floor, so that a model that can learn flips by heart runs away; ``likelihood`` lets go of labels that it is sure
            are flipped.
        bagging: for several scores that are an ensemble: the part of the records that each learns from, another one each. They
            count ``1 / bagging``.

    Paper: Training language models to follow instructions with human feedback, arXiv 2203.02155, eq. 1; the margin of Llama 2,
    arXiv 2307.09288, eq. 2; the centre of Helping or Herding?, arXiv 2312.09244, eq. 4; mu of Secrets of RLHF Part II, arXiv 2401.06080.
    Corrections: conservative DPO's; robust DPO's, arXiv 2403.00409; the forward one of Patrini et al., arXiv 1609.03683.

    Deviations: the papers have no soft labels. A tie, p = 0.5, pulls the two scores together.

    Dialects:
    - TRL 1.16: centre=0.01: ``center_rewards_coefficient``, which is off by default; its ``margin`` is a number of each record, as
      here with margin=1 and the ratings' difference.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry(), torch.tensor([[True], [True]])
        >>> steps = Steps(torch.tensor([[1.5], [0.5]]).double(), mask, kind="score")
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> loss = method.loss(steps, method.signal(feedback))
        >>> (method.weigh(mask) * loss.values).sum()  # -log sigmoid(1.5 - 0.5)
        tensor(0.3133, dtype=torch.float64)
    """
    compared = several.bagged(rated.ahead_by(margin, flips=smoothing, correction=correction), bagging)
    return pairwise(compared, *([rated.centred(centre)] if centre else []), kinds=SCORES, wins=rated.wins)
