"""Contrastive Preference Learning."""

from __future__ import annotations

from mmalign.arguments.ranges import Fraction, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import shares
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method, UserError


def cpl(*, beta: Positive = 0.1, gamma: Fraction = 1.0, bias: Fraction = 0.5) -> Method:
    """Preferences as regrets: discounted log-probabilities of what was done take the place of advantages; no reference, no reward.

    With ``s = sum_t gamma^t beta log pi_t`` of a row, better row w, worse row r::

        loss = mean over pairs of  -log( e^{s_w} / (e^{s_w} + e^{bias s_r}) )

    Args:
        beta: temperature, the paper's alpha.
        gamma: discount of a step.
        bias: the paper's lambda, above 0 to 1; below 1 it keeps the policy near what the data does.

    Paper: Contrastive Preference Learning: Learning from Human Feedback without RL, arXiv 2310.13639.

    Deviations: the bias counts for the row that is worse in each order, so the two orders' probabilities do not add to 1, as in the
    authors' code, which has no discount and an optional supervised term. The defaults are ours; in that code's classes all are 1.
    """
    links.positive(beta=beta)
    if not 0 < bias <= 1:
        raise UserError(f"bias: got {bias}, takes above 0 to 1")
    score = scores.policy(share=shares.discounted(gamma))
    return pairwise(compared(score, lambda better, worse: links.logistic(better - bias * worse, beta=beta)))
