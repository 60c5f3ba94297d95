"""Contrastive Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Half, NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def cpo(
    *, beta: Positive = 0.1, likelihood: NotNegative = 1.0, average: Literal["sequence", "token", "sum"] = "sequence", smoothing: Half = 0.0
) -> Method:
    """DPO without the reference, held in place by the likelihood of better rows.

    With l the log-probability of a row, nats, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (l_w - l_r)) - likelihood * average of l_w

    Args:
        beta: how much a nat counts.
        likelihood: weight of the better row's log-likelihood.
        average: of that likelihood: ``sequence``, over a row's steps; ``token``, over the steps of all better rows; ``sum``.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5.

    Paper: Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation, arXiv 2401.08417.

    Deviations: soft labels are ours. ``constrained_po`` is another paper's CPO.

    Dialects:
    - TRL 1.16: beta=0.1, average="token": CPOTrainer; its likelihood covers the prompt too unless the labels mask it.
    """
    return pairwise(
        compared(scores.policy(), links.smoothed(links.ahead(links.named("logistic", beta=beta)), flips=smoothing)),
        times(likelihood, regularisers.likelihood(average)),
    )
