"""Direct Document Relevance Optimization."""

from __future__ import annotations

from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def ddro(*, beta: float = 0.4) -> Method:
    """DPO for generative retrieval: the identifier of a relevant document against that of an irrelevant one.

    With m DPO's margin, rows being document identifiers::

        loss = mean over pairs of  -log sigmoid(beta m)

    Args:
        beta: as in ``dpo``.

    Paper: Lightweight and Direct Document Relevance Optimization for Generative Information Retrieval, arXiv 2504.05181.

    Deviations: only the abstract was at hand; supervised training on identifiers comes first, and ``ref`` is its result. beta is ours.
    """
    return dpo(beta=beta)
