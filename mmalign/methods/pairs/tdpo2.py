"""Token-level DPO, second form."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method


def tdpo2(*, beta: Positive = 0.1, alpha: NotNegative = 0.5) -> Method:
    """Token-level DPO in which the better row's divergence is only what the worse row's is measured by.

    With m DPO's margin and ``K = sum_t KL(ref || pi)_t`` over the steps of a row, better row w, worse row r, sg without gradient::

        loss = mean over pairs of  -log sigmoid(beta [m - alpha (K_r - sg(K_w))])

    Args:
        beta: as in ``dpo``.
        alpha: how much the divergence counts.

    Paper: Token-level Direct Preference Optimization, arXiv 2404.11999, eq. 17.

    Deviations: as in ``tdpo1``. Without the stop at K_w this is ``tdpo1`` at alpha = 1.
    """
    links.positive(beta=beta)
    return pairwise(token_level.tdpo(beta=beta, alpha=alpha, both=False))
