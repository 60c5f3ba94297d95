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
    *, beta: Positive = 0.1, alpha: NotNegative = 0.6, decay: Fraction = 0.9, kept: Fraction = 0.8,
    margin: Literal["total", "per_step", "per_scalar"] = "total",
) -> Method:  # fmt: skip
    """DPO that trusts a batch of clear pairs less, and stays closer to the reference: beta rises with the batch's margin.

    With m DPO's margin, M_0 the moving average of ``beta m`` over updates, and M its mean over the ``kept`` pairs of the update whose
    ``beta m`` is nearest to M_0::

        loss = mean over kept pairs of  -log sigmoid(b m),   b = beta [1 + alpha (M - M_0)]

    Args:
        beta: of a batch whose margin is the usual one.
        alpha: how much b follows the batch's margin; 0 is DPO.
        decay: of the moving average, which takes in all pairs of every update.
        kept: part of the pairs, at least one, that are learned from: those with the most extreme margins are left out; 1: all are.
        margin: as in ``dpo``.

    Paper: beta-DPO: Direct Preference Optimization with Dynamic beta, arXiv 2407.08639.

    Deviations: b is not below beta / 100. Theirs draws the kept pairs, with chances that fall as a Gaussian's with the distance from M_0;
    here the nearest are taken, so that an update depends on nothing but its pairs. The moving average begins as the first update's mean; it
    is state of the method, in the checkpoint. A soft label counts its pair's margin by how sure it is, ``2 p - 1``.
    """
    return pairwise(betas.dynamic(scores.ratio(margin), beta=beta, share=alpha, decay=decay, kept=kept), kinds=ANY)
