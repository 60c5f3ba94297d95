"""Anchored Preference Optimization, down."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def apo_down(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """For better rows that are worse than what the model says: both rows go down, worse rows more.

    With ``d = log pi - log ref`` of a row, better row w, worse row r::

        loss = mean over pairs of  sigmoid(beta d_w) + 1 - sigmoid(beta (d_w - d_r))

    Args:
        beta: how much a nat counts.
        margin: how a row's log-ratio is added up, as in ``dpo``.

    Paper: Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment, arXiv 2408.06266, eq. 8.

    Deviations: soft labels are ours. The gradient ends far away, on either side, as the formula has it.

    Dialects:
    - TRL 1.16: beta=0.1: ``loss_type="apo_down"``.
    """
    links.positive(beta=beta)
    link = lambda better, worse: links.anchored_down(better, worse, beta=beta)  # noqa: E731
    return pairwise(compared(scores.ratio(margin), link), kinds=ANY)
