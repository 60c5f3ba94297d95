"""Weighted Preference Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import margins
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def wpo(*, beta: Positive = 0.01, cap: bool = True) -> Method:
    """DPO on somebody else's texts as if they were the policy's own: pairs count by how likely the policy is to write them.

    With m DPO's margin and ``a = mean over steps of [log pi - log sum over the vocabulary of pi^2]`` of a row::

        loss = mean over pairs of  - min(1, exp(a_w + a_r)) log sigmoid(beta m)

    The weight has no gradient.

    Args:
        beta: as in ``dpo``.
        cap: the ``min(1, .)``.

    Paper: WPO: Enhancing RLHF with Weighted Preference Optimization, arXiv 2406.11827, eq. 2 and sampled alignment.

    Deviations: the weight is of the pair, and not normalised over a batch. Without ``cap`` its exponent goes on along its tangent beyond
    20 nats. Soft labels are ours. The default beta is the authors' code's for its larger models.

    Dialects:
    - TRL 1.16: cap=False, beta=0.1: ``use_weighting=True``; its own default beta.
    """
    ahead = links.ahead(links.named("logistic", beta=beta))
    return pairwise(compared(scores.ratio(), ahead, weight=margins.on_policy(cap=cap)), kinds=frozenset({"token"}))
