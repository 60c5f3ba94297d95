"""Simple Preference Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import Half, NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def simpo(*, beta: Positive = 2.0, gamma: NotNegative = 1.0, likelihood: NotNegative = 0.0, smoothing: Half = 0.0) -> Method:
    """Rank by mean log-probability, with a gap; no reference model, and length does not pay.

    With a the mean log-probability of a row's steps, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (a_w - a_r) - gamma) - likelihood * a_w

    Args:
        beta: 2 to 10 in the paper.
        gamma: the gap that is asked for, in units of ``beta a``; gamma / beta is 0.1 to 0.8 there.
        likelihood: weight of the better row's mean log-likelihood; above 0 it is called CPO-SimPO.
        smoothing: part of the labels taken to be flipped, 0 to below 0.5.

    Paper: SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv 2405.14734, eq. 6.

    Deviations: soft labels are ours, and ask a tie for a gap in neither direction.

    Dialects:
    - TRL 1.16: beta=0.1, gamma=0.5, likelihood=1.0: CPOTrainer's ``loss_type="simpo"`` adds the likelihood unless cpo_alpha is 0.
    - SimPO: beta=2.0, gamma=0.5: its code has gamma_beta_ratio, 0.25 of beta.

    Examples:
        >>> mm.methods.simpo().needs  # no reference
        frozenset()
    """
    links.positive(beta=beta)
    link = links.smoothed(links.ahead(links.named("logistic", beta=beta), by=gamma / beta), flips=smoothing)
    return pairwise(
        compared(scores.policy("per_step"), link),
        times(likelihood, regularisers.likelihood("sequence")),
    )
