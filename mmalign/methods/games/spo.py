"""Self-play Preference Optimization: the win rate in one's own batch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, comparisons
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def spo(*, scale: Positive = 1.0, clip: Positive = 0.2, beta: NotNegative = 0.0, kl: str = "k3") -> Method:
    """A row's reward is how often it is preferred to the others of its group: no reward model, and no reference to beat but oneself.

    ``u_i = mean_j P(i beats j)`` over the rows j that i was compared with, ``A_i = u_i - mean_group u``, ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta kl_it ]

    Args:
        scale: reward units of a logit, where nobody compared rows and Bradley-Terry does.
        clip: how far a ratio may leave 1, both ways.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.

    Paper: A Minimaximalist Approach to Reinforcement Learning from Human Feedback, arXiv 2401.04056.

    Deviations: the paper leaves the learner open and uses SAC and PPO with a queue of past rows; here it is PPO's surrogate, without a
    critic and with the rows of one rollout. (SPO is also the name of a method about degrees of preference.)
    """

    def advantage(feedback: Feedback) -> Tensor:
        rate = torch.where(feedback.rewards.isnan(), torch.nan, comparisons.win_rate(feedback, scale=scale))
        return advantages.centred(rate, feedback.group)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
    )
