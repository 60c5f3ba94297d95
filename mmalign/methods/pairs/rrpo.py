"""Refined Regularized Preference Optimization, for video language models."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers, shares
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def rrpo(*, beta: Positive = 0.1, alpha: NotNegative = 0.1) -> Method:
    """DPO on the phrases in which two answers differ, with the better answer held to the reference token by token.

    With ``u = sum of log(pi / ref)`` over the differing phrases of a row, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (u_w - u_r)) + alpha sum_t KL(ref || pi)_{w,t}

    Args:
        beta: as in ``dpo``; 0.1 to 0.9 suggested by the authors' code.
        alpha: weight of the divergence; 0.01 to 0.1 suggested there.

    Paper: Self-alignment of Large Video Language Models with Refined Regularized Preference Optimization, arXiv 2504.12083.

    Deviations: none in the formula, which the authors' code has: the KL stands outside the sigmoid, and is the better row's alone. That
    code takes the reference's logarithm after a softmax, as TDPO's does (NaN far away). Phrases are the fact ``phrase``, not 0 where
    rows differ. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(share=shares.phrases()), links.ahead(links.named("logistic", beta=beta))),
        times(alpha, regularisers.reverse_kl("better")),
        kinds=frozenset({"token"}),
    )
