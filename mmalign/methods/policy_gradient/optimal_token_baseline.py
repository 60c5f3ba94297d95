"""The Optimal Token Baseline."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive, Proportion
from mmalign.needs import COLLISION, MASK, OLD
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def optimal_token_baseline(*, clip: Positive | None = 0.2, gamma: Proportion = 1.0) -> Method:
    """The policy gradient with a baseline for each token: that of least variance, by how much gradient a row has gathered so far.

    ``W_it = sum_{s <= t} (1 - 2 p_is + sum_v p_v^2)`` with p the probabilities at sampling, ``G_it = sum_{s >= t} gamma^(s - t) r_is``,
    ``A_it = G_it - sum_j G_jt W_jt / sum_j W_jt`` over rows j of i's group that are live at t, and ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho_it A_it, clip(rho_it, 1 - clip, 1 + clip) A_it) ]

    Args:
        clip: how far a ratio may leave 1, both ways, or None.
        gamma: discount of a step.

    Paper: The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL, arXiv 2602.07078 (the logit-gradient proxy).

    Deviations: a tied group, and a row alone, have advantage 0; where one row of a group alone is live, its baseline is its own return
    (verl leaves it at that too, and can zero it). Tokens only: the proxy is of a distribution over words.
    """

    def advantage(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        earned = returns.to_go(returns.at_end(feedback.rewards, inside), inside, gamma=gamma)
        ahead = earned - returns.optimal_baseline(earned, feedback)
        return torch.where(advantages.informative(feedback.rewards, feedback.group)[:, None] & inside, ahead, 0.0)

    return policy_gradient(
        advantage=Reading(advantage, frozenset({MASK, OLD, COLLISION})),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped if clip is None else partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.token_mean,
        kinds=frozenset({"token"}),
    )
