"""Reward models of comparisons that say how sure a score is."""

from __future__ import annotations

from mmalign.arguments.ranges import Fraction
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import several, uncertain
from mmalign.types import Method


def bradley_terry_gaussian(*, bagging: Fraction = 1.0) -> Method:
    """A mean and the logarithm of a variance for every output: what people disagree about is uncertain, and pulls less.

    With scores ``s ~ N(mean, variance)`` and p the strength of a preference, in each dimension (names stand in twos, as ``scores: [a,
    a_spread, b, b_spread]``)::

        loss = mean over pairs of  -p log P(w) - (1 - p) log P(l),    P(w) = E sigmoid(s_w - s_l)

    The difference of two is Gaussian with the sum of both variances, and the mean over it is taken by quadrature, without drawing. Scores
    are comparable up to one number added to all means, and variances only where preferences go both ways.

    bagging: for several dimensions that are the heads of one Bayesian reward model (BRME) and not labelled each by itself: the part of the
        records that each learns from, another one each. They count ``1 / bagging``, and start apart (``policy.head: {use: linear, spread:
        0.02}``). As a reward: ``{use: trained, run: ..., spread: true}``, and ``combine: {use: bayesian, heads: {NAME/a: NAME/a_spread,
        ...}}``, the most certain head's mean and the worst head's.

    Paper: HPSv3, arXiv 2508.03789, sec. 4 (one dimension); EditReward, arXiv 2509.26346, sec. 3 (several; of a tie both orders, which is
    a strength of 0.5); PEARL, arXiv 2306.03615, eq. 7. Heads: Reward-Robust RLHF in LLMs (BRME), arXiv 2409.15360 (recalled).

    Deviations: the papers draw differences; EditReward also averages the dimensions' means and variances before it compares, here each
    dimension is compared by itself. BRME's heads learn to regress a first reward model's scores, in a second stage; here they learn from
    comparisons, of a part of the records each.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_gaussian(), torch.ones(2, 2).bool()
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> for log_variance in (-20.0, 4.0):  # -log sigmoid(1) where scores are sure, and near log 2 where they are not
        ...     steps = Steps(torch.tensor([[1.0, log_variance], [0.0, log_variance]]).double(), mask, kind="score")
        ...     (method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum()
        tensor(0.3133, dtype=torch.float64)
        tensor(0.6207, dtype=torch.float64)
    """
    term = several.bagged(uncertain.probably_ahead(), bagging, numbers=2)
    return pairwise(term, kinds=SCORES, numbers=2, wins=lambda own, other: uncertain.log_wins(own, other).exp())
