"""Direct Document Relevance Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def ddro(*, beta: Positive = 0.4) -> Method:
    """DPO for generative retrieval: the identifier of a relevant document against that of an irrelevant one.

    With m DPO's margin, rows being document identifiers::

        loss = mean over pairs of  -log sigmoid(beta m)

    Args:
        beta: as in ``dpo``.

    Paper: Lightweight and Direct Document Relevance Optimization for Generative Information Retrieval, arXiv 2504.05181; the loss as the
    authors write it in their code's README (github.com/kidist-amde/ddro, phase 2), which is DPO's, with beta = 0.4, the value of its
    ``train_dpo_encoder_decoder.py`` for MS MARCO and of the one for Natural Questions.

    Deviations: none in the loss; soft labels as in ``dpo``. What comes before is not here: supervised training on identifiers, whose
    result is ``ref``, and irrelevant documents that BM25 ranks high. Another script of theirs, ``train_dpo_model.py``, has 0.49.
    """
    return dpo(beta=beta)
