"""Token-level reward regularization."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def t_reg(*, beta: Positive = 0.1, weight: NotNegative = 0.25) -> Method:
    """DPO, with the credit of single tokens guided by what the reference itself thinks of them when asked for a good and a bad answer.

    With m DPO's margin, ``r_t = sigmoid(log ref(y_t | good) - log ref(y_t | bad)) - 1/2`` and sg without gradient::

        loss = mean over pairs of  -log sigmoid(beta m) - weight sg(sigmoid(-beta m)) sum over both rows' steps of beta r_t log pi_t

    Args:
        beta: as in ``dpo``.
        weight: of the regulariser, the paper's alpha; 0.1, 0.25 or 0.5 there.

    Paper: T-REG: Preference Optimization with Token-Level Reward Regularization, arXiv 2412.02685.

    Deviations: the formula is from a published summary of the paper, not from its text or code. The two prompts are the policy's
    contrasts ``good`` and ``bad``. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        times(weight, token_level.rewarded(beta=beta)),
    )
