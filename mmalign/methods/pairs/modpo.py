"""Multi-Objective DPO."""

from __future__ import annotations

from mmalign.arguments.ranges import Fraction, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import margins
from mmalign.types import Method


def modpo(*, beta: Positive = 0.1, weight: Fraction = 0.5) -> Method:
    """DPO on one objective's labels with other objectives' rewards as a margin: the optimum of their weighted sum.

    With m DPO's margin, delta the other objectives' reward of the better row minus that of the worse row, w the weight::

        loss = mean over pairs of  -log sigmoid((beta m - (1 - w) delta) / w)

    Args:
        beta: as in ``dpo``.
        weight: w, of the objective that the labels are about; above 0 to 1. The other rewards have 1 - w together.

    Paper: Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization, arXiv 2310.03708.

    Deviations: the other objectives come as one reward, which is the weighted mean that the recipe's rewards make; a pair without it is
    left out. The paper takes reward models for them, or implicit rewards. Soft labels are ours.
    """
    links.positive(beta=beta)
    return pairwise(margins.less_rewards(scores.ratio(), beta=beta, share=weight), kinds=ANY)
