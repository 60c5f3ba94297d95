"""Alignment via Optimal Transport."""

from __future__ import annotations

from mmalign.arguments.ranges import Half, Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import transport
from mmalign.types import Method


def aot(*, beta: Positive = 0.1, paired: bool = True, smoothing: Half = 0.0) -> Method:
    """Better rows ahead as a distribution: the i-th smallest score is compared with the i-th smallest, not pair by pair.

    With ``g`` the log-probability of a pair's better row minus its worse one's, and ``g_ref`` the reference's; or, unpaired, with
    ``d = log pi - log ref`` of a row::

        loss = mean over ranks i of  -log sigmoid(beta (g_(i) - g_ref_(i)))            (paired)
        loss = mean over ranks i of  -log sigmoid(beta (d_better_(i) - d_worse_(i)))   (unpaired)

    Args:
        beta: how much a nat counts.
        paired: which of the two.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5.

    Paper: Distributional Preference Alignment of LLMs via Optimal Transport, arXiv 2406.05882.

    Deviations: ranks are those in the whole update, found before its micro-batches, so that the loss does not depend on their size; TRL
    sorts within each device's micro-batch. A label counts by which row is the better one; ties are left out.

    Dialects:
    - TRL 1.16: paired=True, beta=0.1: ``loss_type="aot"``.
    - TRL 1.16 aot_unpaired: paired=False, beta=0.1: older TRL, ms-swift and LLaMA-Factory call this one ``aot``, the other ``aot_pair``.
    """
    link = links.smoothed(links.ahead(links.named("logistic", beta=beta)), flips=smoothing)
    return pairwise(transport.by_rank(link, paired=paired))
