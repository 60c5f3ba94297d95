"""PPO with policy filtration."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, penalised
from mmalign.types import Method


def pf_ppo(
    *,
    keep: Literal["best_worst", "best_random", "power"] = "best_worst",
    power: NotNegative = 2.0,
    clip: Positive = 0.2,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
    beta: NotNegative = 0.02,
) -> Method:
    """PPO on the rows of a group whose reward can be trusted: a reward model is surest of the best and the worst.

    ``w_i = n_group P(i)``, P how likely the filter draws row i of its n known rows; advantages and returns by the critic as in ``ppo``::

        loss = mean_it [ w_i ( -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 (V - R)^2 ) ]

    Args:
        keep: P: ``best_worst``, 1/2 for the best and 1/2 for the worst row; ``best_random``, 1/2 for the best and the rest for the
            others alike; ``power``, in proportion to ``|r|^power``.
        power: see ``keep``.
        clip, gamma, lam, value, beta: as in ``ppo``.

    Which filter suits a reward is what ``mmalign.evaluation.filter_r2`` says of rows whose true score is known.

    Paper: Policy Filtration in RLHF to Fine-Tune LLM for Code Generation, arXiv 2409.06957.

    Deviations: the paper draws rows by P; a weight of n P is that draw's mean, without its noise and without a seed (a clipped
    surrogate is linear in its advantage). Ties share. A tied group, and a row alone, keep weight 1. Advantages are normalised before they
    are weighted.

    Dialects:
    - verl 0.7: keep="power", beta=0.0: by the size of the reward, its sign aside, over the whole batch and drawn with replacement; its
      other choices are the largest and the smallest, and .4 for the largest with .1 for the others.
    """
    return actor_critic(
        rewards=penalised(AdaptiveKL(beta=beta, target=None)),
        critic=Critic(gamma, lam, value),
        clip=clip,
        share=lambda feedback: advantages.filtered(feedback.rewards, feedback.group, keep=keep, power=power),
    )
