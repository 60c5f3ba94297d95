"""Token-level DPO, first form."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method


def tdpo1(*, beta: Positive = 0.1) -> Method:
    """DPO derived token by token: the margin less the difference of the rows' divergences from the reference.

    With m DPO's margin and ``K = sum_t KL(ref || pi)_t`` over the steps of a row, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta [m - (K_r - K_w)])

    Args:
        beta: as in ``dpo``.

    Paper: Token-level Direct Preference Optimization, arXiv 2404.11999, eq. 15.

    Deviations: none in the formula. The authors' code takes the reference's logarithm after a softmax, which is NaN beyond about 104
    nats in float32; here policies hand over a KL from log-softmaxes. Soft labels are ours. Equation numbers are as we remember them.
    """
    links.positive(beta=beta)
    return pairwise(token_level.tdpo(beta=beta, alpha=1.0, both=True))
