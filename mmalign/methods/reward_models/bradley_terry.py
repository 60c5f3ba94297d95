"""Reward models of comparisons."""

from __future__ import annotations

from mmalign.arguments.ranges import Half, NotNegative
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated
from mmalign.types import Method


def bradley_terry(*, margin: NotNegative = 0.0, centre: NotNegative = 0.0, smoothing: Half = 0.0) -> Method:
    """A score for every output, so that the difference of two says how probably people prefer the one.

    With s the scores and p the strength of a preference, in each dimension that is scored::

        loss = mean over pairs of  -p log sigmoid(s_w - s_l - margin (r_w - r_l)) - (1 - p) log sigmoid(...)  + centre (s_w + s_l)^2

    Args:
        margin: how far scores have to be apart, as a share of the difference of the records' own ratings r (Llama 2's margin; pairs
            without ratings are then left out). 0 takes pairs as they are.
        centre: keeps scores around 0, which comparisons alone leave open; 0.01 is usual.
        smoothing: part of the labels taken to be flipped.

    Paper: Training language models to follow instructions with human feedback, arXiv 2203.02155, eq. 1; the margin of Llama 2,
    arXiv 2307.09288, eq. 2; the centre of Helping or Herding?, arXiv 2312.09244, eq. 4.

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
    return pairwise(rated.ahead_by(margin, flips=smoothing), *([rated.centred(centre)] if centre else []), kinds=SCORES, wins=rated.wins)
