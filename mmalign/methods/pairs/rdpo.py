"""Robust DPO."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def rdpo(*, beta: Positive = 0.1, flips: Half = 0.1, margin: Literal["total", "per_step", "per_scalar"] = "total") -> Method:
    """DPO's loss, corrected so that its mean over flipped labels is the loss on the labels before they were flipped.

    With m DPO's margin, ``l(m) = -log sigmoid(beta m)`` and e the part of the labels that was flipped, for a sure label::

        loss = mean over pairs of  [(1 - e) l(m) - e l(-m)] / (1 - 2 e)

    Unbounded below: the second term falls as fast as the margin grows.

    Args:
        beta, margin: as in ``dpo``.
        flips: e, 0 to below 0.5.

    Paper: Provably Robust DPO: Aligning Language Models with Noisy Feedback, arXiv 2403.00409.

    Deviations: a soft label p counts as ``(p - e) / (1 - 2 e)``, the clean probability that flips turn into p; a tie stays a tie.

    Dialects:
    - TRL 1.16: beta=0.1, flips=0.1: ``loss_type="robust"``; flips is its label_smoothing, whose default is 0.
    """
    return pairwise(
        compared(scores.ratio(margin), links.unbiased(links.ahead(links.named("logistic", beta=beta)), flips=flips)),
        kinds=ANY,
    )
