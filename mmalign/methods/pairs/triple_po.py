"""Triple Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives.sentences import triples
from mmalign.types import Method


def triple_po(
    *, beta: Positive = 0.01, likelihood: NotNegative = 1.0, margin: Literal["total", "per_step"] = "total", gamma: NotNegative = 0.0
) -> Method:
    """Three answers at once: the best is imitated, and of the others the better is put before the worse; no reference model.

    With s the log-probability of a row (``total``) or its mean over steps (``per_step``), gold row g, better row w, worse row r::

        loss = mean over triples of  -log sigmoid(beta (s_w - s_r) - gamma) - likelihood * mean over steps of log pi_g

    Args:
        beta: how much a nat counts.
        likelihood: weight of the gold row's log-likelihood.
        margin, gamma: ``per_step`` with a gap is the paper's TPO-L.

    Paper: Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization, arXiv 2405.16681.

    Deviations: a triple is the best, the second and the last of a list by its scores, where no two of them are equal; lists of fewer
    rows, and the rows between, teach nothing. Rows that take no part are not counted by recipes, and count with value 0 here.

    Dialects:
    - TRL 1.16: beta=0.01, likelihood=1.0: TPOTrainer, whose likelihood is a mean over the tokens of all gold rows.
    - TRL 1.16 tpo-l: beta=0.01, margin="per_step", gamma=0.5: its ``loss_type="tpo-l"``.
    """
    return triples.triples(beta=beta, likelihood=likelihood, margin=margin, gamma=gamma)
