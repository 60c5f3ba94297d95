"""Sequence Likelihood Calibration from human feedback."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def slic(*, delta: NotNegative = 1.0, likelihood: NotNegative = 1.0) -> Method:
    """Rank by log-probability with a fixed gap, and keep writing like the better rows; no reference model.

    With ``l`` the log-probability of a row, nats, better row w, worse row r::

        loss = mean over pairs of  max(0, delta - l_w + l_r) - likelihood * l_w

    Args:
        delta: the gap that is enough, nats.
        likelihood: weight of the better row's log-likelihood.

    Paper: SLiC-HF: Sequence Likelihood Calibration with Human Feedback, arXiv 2305.10425.

    Deviations: the paper's regulariser is the likelihood of a target text, which may be another one; here it is the better row. Its
    weight is tuned there; 1 is ours. HALOs adds a hinge ``[B]`` to a likelihood ``[B, T]``, which broadcasts where B = T.
    """
    margin = links.ahead(lambda gap: (delta - gap).relu())
    return pairwise(compared(scores.policy(), margin), times(likelihood, regularisers.likelihood("sum")))
