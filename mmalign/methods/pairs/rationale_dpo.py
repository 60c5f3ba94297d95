"""DPO with rationales."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers, shares
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def rationale_dpo(*, beta: Positive = 0.1, weight: NotNegative = 1.0) -> Method:
    """DPO on answers, and supervised training on a text that says why the better one is better.

    With m DPO's margin over the steps of segment 1 (the answer) and q the steps of segment 2 (the rationale)::

        loss = mean over pairs of  -log sigmoid(beta m) - weight * mean over q of the better row of log pi

    Args:
        beta: as in ``dpo``.
        weight: of the rationale's log-likelihood, the paper's gamma.

    Paper: Data-Centric Human Preference Optimization with Rationales, arXiv 2407.14477.

    Deviations: in the paper the rationale's prompt holds both answers and is a sequence of its own; here it follows the better answer in
    its row, as segment 2 of the fact ``segment``, so that it is conditioned on that answer alone unless the prompt shows the other.
    A row without a rationale has no such term. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(share=shares.segment(1)), links.ahead(links.named("logistic", beta=beta))),
        times(weight, regularisers.likelihood("sequence", share=shares.segment(2))),
        kinds=frozenset({"token"}),
    )
