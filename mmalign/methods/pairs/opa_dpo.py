"""On-Policy Alignment DPO."""

from __future__ import annotations

from mmalign.arguments.ranges import Finite, NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import conditioned, regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def opa_dpo(*, beta: Positive = 0.1, picture: NotNegative = 0.2, keep: NotNegative = 1.0, anchor: Finite = 0.0) -> Method:
    """mDPO on answers that the policy could have given: its own as the worse ones, and their revision, learnt before, as the better.

    With ``d = log pi - log ref`` of a row, ``d'`` the same with the picture taken away, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r)) - picture log sigmoid(beta (d_w - d'_w))
                                   - keep log sigmoid(beta (d_w - anchor))

    ``ref`` is the policy after supervised fine-tuning (``sft``) on the better answers of all pairs, so that none is far from it.

    Args:
        beta: as in ``dpo``.
        picture: weight of the comparison without the picture.
        keep: weight of what holds the better row up. anchor: the log-ratio that it shall not fall below, nats.

    Paper: Mitigating Hallucinations in Large Vision-Language Models via DPO: On-Policy Data Hold the Key, arXiv 2501.09695.

    Deviations: weights are those of the authors' script. A prompt has two pairs there, the true answer and the revised one, each against
    the policy's own; here they are two records. That code compares position by position and not row by row, weighs words by how bad a
    reviser called them, and turns the anchor of the revised answer around; none of this is here. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        times(picture, conditioned.informed("ablated", beta=beta)),
        times(keep, regularisers.anchored(beta=beta, at_least=anchor)),
        kinds=ANY,
    )
