"""Multi-level aware preference learning, within pairs."""

from __future__ import annotations

from mmalign.objectives import conditioned, links, pairwise, scores
from mmalign.types import Method


def mapl(*, beta: float = 0.1, weight: float = 1.0) -> Method:
    """DPO, and the same question asked of prompts: an answer belongs to its own instructions rather than to changed ones.

    With ``d = log pi - log ref`` of a row, ``d'`` the same under instructions that were changed, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r)) - weight log sigmoid(beta (d_w - d'_w))

    Args:
        beta: as in ``dpo``.
        weight: of the comparison of prompts.

    Paper: Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks, arXiv 2505.12845.

    Deviations: only the abstract was at hand. This is the term within a sample, in DPO's form; the paper's term between samples, which
    compares margins of pairs of different prompts, is left out because its form is not known to us. The changed instructions are the
    policy's contrast ``ablated``. Soft labels are ours.
    """
    return pairwise.pairwise(
        pairwise.compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        pairwise.times(weight, conditioned.needed("ablated", beta=beta)),
        kinds=pairwise.ANY,
    )
