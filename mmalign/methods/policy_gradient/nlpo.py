"""Natural Language Policy Optimization."""

from __future__ import annotations

from dataclasses import replace

from mmalign.arguments.ranges import Count, Fraction, NotNegative, Positive, Proportion
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, penalised
from mmalign.samplers.masking import Masking
from mmalign.types import Method, Move

MASKING = "masking"


def nlpo(  # PPO's numbers and the mask's
    *,
    clip: Positive = 0.2,
    gamma: Proportion = 0.99,
    lam: Proportion = 0.95,
    value: NotNegative = 0.5,
    beta: NotNegative = 0.1,
    target_kl: Positive | None = 2.0,
    rate: NotNegative = 0.2,
    top_p: Fraction = 0.9,
    least: Count = 1,
    every: Count = 5,
) -> Method:
    """PPO on a masked policy: words that a lagging copy of the policy finds unlikely (outside its top p) cannot be chosen.

    At a step, M are the likeliest words of the copy psi that ``top_p`` of its probability falls on, and those that end a completion.
    Rows are drawn from ``pi^M(y) = pi(y) 1[y in M] / pi(M)``, and pi, its old self and ``ref`` all stand for theirs below, with the M that
    a row was drawn with; psi becomes the policy before every ``every``-th rollout. With ``r_t = r at the last step - beta (log pi_old -
    log ref)_t`` and advantages by the critic as in ``ppo``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 (V - R)^2 ]

    beta follows the KL of a row: ``beta <- beta (1 + rate clip((KL - target_kl) / target_kl, -0.2, 0.2))`` after each rollout.

    Args:
        clip, gamma, lam, value: as in ``ppo``.
        beta: price of a nat of KL to ``ref`` at the start, in units of the reward. target_kl: nats of a row, or None to keep beta.
        rate: how fast beta follows.
        top_p: of psi's probability; 1 masks nothing, and is ``ppo`` with these numbers. least: words in M at least.
        every: rollouts that psi stays for. It is the set ``masking``, which ``references: {masking: ...}`` may move otherwise.

    Paper: Is Reinforcement Learning (Not) for Natural Language Processing: Benchmarks, Baselines, and Building Blocks for Natural
    Language Policy Optimization, arXiv 2210.01241.

    Deviations: the price of the KL is of the masked distributions, a KL on M; RL4LMs samples from the masked policy and takes the
    unmasked ratio. The policy that is evaluated and exported is pi without a mask. Numbers vary by task in RL4LMs.

    Dialects:
    - RL4LMs: beta=0.1, target_kl=1.0, rate=0.2, top_p=0.9, least=100, every=5: its configuration of IMDB. The rate is not in it.
    """
    rewards = penalised(AdaptiveKL(beta=beta, target=target_kl, rate=rate))
    method = actor_critic(rewards=rewards, critic=Critic(gamma, lam, value), clip=clip)
    if top_p == 1:
        return method
    return replace(method, masking=Masking(MASKING, top_p, least), moves=(Move(MASKING, {"current": 1.0}, every=every),))
