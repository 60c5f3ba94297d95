"""Multimodal DPO."""

from __future__ import annotations

from mmalign.arguments.ranges import Finite, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import conditioned, regularisers
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def mdpo(*, beta: Positive = 0.1, anchor: Finite = 0.0) -> Method:
    """DPO that cannot be won without looking: the better answer has to need the picture, and must not become unlikely.

    With ``d = log pi - log ref`` of a row, ``d'`` the same with the picture taken away, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r)) - log sigmoid(beta (d_w - d'_w)) - log sigmoid(beta (d_w - anchor))

    Args:
        beta: as in ``dpo``.
        anchor: the log-ratio that the better row shall not fall below, nats.

    Paper: mDPO: Conditional Preference Optimization for Multimodal Large Language Models, arXiv 2406.11839.

    Deviations: what is taken away, and how, is the policy's: its contrast ``ablated``, the same for the policy and the reference. The
    anchor is in nats, before beta. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        conditioned.informed("ablated", beta=beta),
        regularisers.anchored(beta=beta, at_least=anchor),
        kinds=ANY,
    )
