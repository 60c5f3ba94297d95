"""DPO with a dynamic beta."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Fraction, NotNegative, Positive
from mmalign.objectives import scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import betas
from mmalign.types import Method


def beta_dpo(
    *, beta: Positive = 0.1, alpha: NotNegative = 0.6, decay: Fraction = 0.9, margin: Literal["total", "per_step", "per_scalar"] = "total"
) -> Method:
    """DPO that trusts a batch of clear pairs less, and stays closer to the reference: beta rises with the batch's margin.

    With m DPO's margin, M the mean of ``beta m`` over the update, and M_0 its moving average::

        loss = mean over pairs of  -log sigmoid(b m),   b = beta [1 + alpha (M - M_0)]

    Args:
        beta: of a batch whose margin is the usual one.
        alpha: how much b follows the batch's margin; 0 is DPO.
        decay: of the moving average, which takes in every update.
        margin: as in ``dpo``.

    Paper: beta-DPO: Direct Preference Optimization with Dynamic beta, arXiv 2407.08639.

    Deviations: b is not below beta / 100. Their filter, which leaves out pairs with the most extreme margins, is not here. The moving
    average begins as the first update's mean; it is state of the method, in the checkpoint. A soft label counts its pair's margin by how
    sure it is, ``2 p - 1``.
    """
    return pairwise(betas.dynamic(scores.ratio(margin), beta=beta, share=alpha, decay=decay), kinds=ANY)
