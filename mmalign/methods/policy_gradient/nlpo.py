"""Natural Language Policy Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, penalised
from mmalign.types import Method


def nlpo(
    *,
    clip: Positive = 0.2,
    gamma: Proportion = 0.99,
    lam: Proportion = 0.95,
    value: NotNegative = 0.5,
    beta: NotNegative = 0.1,
    target_kl: Positive | None = 2.0,
    rate: NotNegative = 0.2,
) -> Method:
    """PPO on a masked policy: words that a lagging copy of the policy finds unlikely (outside its top p) cannot be chosen.

    With all probabilities those of the masked policy, ``r_t = r at the last step - beta (log pi_old - log ref)_t`` and advantages by the
    critic as in ``ppo``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 (V - R)^2 ]

    beta follows the KL of a row: ``beta <- beta (1 + rate clip((KL - target_kl) / target_kl, -0.2, 0.2))`` after each rollout.

    Args:
        clip, gamma, lam, value: as in ``ppo``.
        beta: price of a nat of KL to ``ref`` at the start, in units of the reward. target_kl: nats of a row, or None to keep beta.
        rate: how fast beta follows.

    Paper: Is Reinforcement Learning (Not) for Natural Language Processing: Benchmarks, Baselines, and Building Blocks for Natural
    Language Policy Optimization, arXiv 2210.01241.

    Deviations: the mask is the sampler's, and not here: the policy has to be the masked one both when it samples and when it is
    scored, and the masking copy to be refreshed every so many updates (the set ``previous``). A word that the mask forbids has
    log-probability minus infinity, and belongs outside ``mask``. Numbers vary by task in RL4LMs.

    Dialects:
    - RL4LMs: beta=0.1, target_kl=1.0, rate=0.2: its configuration of IMDB, where the masking copy is renewed every 5 updates and keeps
      the likeliest 0.9, at least 100 words. The rate is not in it.
    """
    rewards = penalised(AdaptiveKL(beta=beta, target=target_kl, rate=rate))
    return actor_critic(rewards=rewards, critic=Critic(gamma, lam, value), clip=clip)
