"""Proximal Policy Optimization, with a critic."""

from __future__ import annotations

from typing import Annotated

from mmalign.arguments.ranges import NotNegative, Positive, Proportion, within
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, penalised
from mmalign.types import Method


def ppo(  # the paper's own numbers
    *,
    clip: Positive = 0.2,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
    value_clip: Positive | None = 0.2,
    entropy: NotNegative = 0.0,
    beta: NotNegative = 0.02,
    target_kl: Positive | None = None,
    whiten: bool = True,
) -> Method:
    """Every step has an advantage of its own, by a critic that learns what a row is worth from there on; its KL is paid step by step.

    ``r_t = r at the last step - beta (log pi_old - log ref)_t``, ``A_t = sum_{s >= t} (gamma lam)^(s - t) [r_s + gamma V_{s+1} - V_s]``,
    ``R_t = A_t + V_t`` with V at sampling, A brought to mean 0 and variance 1 over all live steps, and ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 max((V - R)^2, (V_clipped - R)^2) - entropy H ]

    Args:
        clip: how far a ratio may leave 1, both ways. dual: above 1, bounds the loss where ``A < 0`` at ``-dual A``; None is off.
        gamma, lam: discount, and how far advantages trust what was earned over what the critic says (1: returns alone).
        value: weight of the critic's loss. value_clip: how far a value may move from the one at sampling, in units of the reward.
        entropy: bonus for a nat of a step's entropy; 0 needs none.
        beta: price of a nat of KL to ``ref``, in units of the reward; 0 needs no reference.
        target_kl: nats of a row; where given, beta is raised above it and lowered below it, by at most 2 % a rollout, and checkpointed.
        whiten: whether advantages are normalised.

    Paper: Proximal Policy Optimization Algorithms, arXiv 1707.06347, eq. 7 and 9; advantages of arXiv 1506.02438; the price of the KL as
    in Fine-Tuning Language Models from Human Preferences, arXiv 1909.08593.

    Deviations: the clip of the value is that of the paper's code. Where a critic is a head of its own its weight only scales its
    learning rate. gamma is 1 and not .99: rows end. beta is InstructGPT's.

    Dialects:
    - verl 0.7: dual=3.0, lam=1.0, value_clip=0.5, beta=0.0: no KL in the reward unless it is asked for; the critic has an optimiser of its
      own.
    """
    return actor_critic(
        rewards=penalised(AdaptiveKL(beta=beta, target=target_kl)),
        critic=Critic(gamma, lam, value, value_clip, whiten),
        clip=clip,
        dual=dual,
        entropy=entropy,
    )
