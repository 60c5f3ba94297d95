"""Noise Contrastive Alignment, for pairs."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def nca(*, beta: Positive = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """Better rows up, worse rows down, and better rows not away without end: each row against noise.

    With ``d = log pi - log ref`` of a row, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta d_w) - 1/2 log sigmoid(-beta d_w) - 1/2 log sigmoid(-beta d_r)

    Args:
        beta: how much a nat counts.
        margin: how a row's log-ratio is added up, as in ``dpo``.

    Paper: Noise Contrastive Alignment of Language Models with Explicit Rewards, arXiv 2402.05369.

    Deviations: the paper's InfoNCA and NCA take rewards of several rows; this is the form for a pair with hard labels. Soft
    labels are ours.

    Dialects:
    - TRL 1.16: beta=0.1: ``loss_type="nca_pair"``.
    """
    links.positive(beta=beta)
    link = lambda better, worse: links.noise_contrastive(better, worse, beta=beta)  # noqa: E731
    return pairwise(compared(scores.ratio(margin), link), kinds=ANY)
