"""Direct Nash Optimization."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Feedback, Method


def dno(*, beta: Positive = 0.1, gap: NotNegative = 0.0, labels: Literal["pair", "win_rates"] = "pair") -> Method:
    """Rounds of contrast against the policy before, on pairs that an oracle sets clearly apart.

    With m the margin of log-ratios to ``previous``::

        loss = mean over pairs with r_better - r_worse >= gap of  -p log sigmoid(beta m) - (1 - p) log sigmoid(-beta m)

    Args:
        beta: how much a nat counts.
        gap: pairs whose rewards are nearer than this are left out; in units of the reward. Pairs without rewards all count.
        labels: p: the strength of the ``pair``, 1 for a sure one; or ``sigmoid(P_better - P_worse)`` of the two rows' ``win_rates``, each
            against the others of its group, so that no pair is surer than .73. Pairs that nobody compared are left out then.

    ``previous`` is the policy of the round before: ``references: {previous: {every: N}}`` says how many steps a round has.

    Paper: Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences, arXiv 2404.03715: algorithm 2, its
    practical version (DNO-Prct), and with ``win_rates`` the regression of algorithm 1, for best and worst rows.

    Deviations: pairs with a teacher's answer count there too, which is the data's affair.
    """
    link = links.ahead(links.named("logistic", beta=beta))
    term = compared(scores.ratio(ref="previous"), link)
    method = pairwise(replace(term, labels=comparisons.by_win_rates) if labels == "win_rates" else term, kinds=ANY)

    def far(feedback: Feedback) -> Tensor:
        """The signal, 0 for pairs that are too near."""
        signal = method.signal(feedback)
        if feedback.pairs is None:
            return signal
        apart = (feedback.rewards[feedback.pairs[:, 0]] - feedback.rewards[feedback.pairs[:, 1]]).abs()
        near = feedback.pairs[~apart.isnan() & (apart < gap)].flatten()
        return signal.index_fill(0, near, 0.0)

    return replace(method, signal=far, keep=lambda feedback: far(feedback)[:, 0] != 0)
