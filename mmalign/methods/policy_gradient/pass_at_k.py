"""GRPO for the best of k."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def pass_at_k(
    *,
    clip: Positive = 0.2,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    std: Literal["group", "none"] = "none",
    unbiased: bool = True,
    eps: NotNegative = 1e-6,
) -> Method:
    """A policy gradient of the best reward of a group: only its best row earns, by how much it is ahead of the second.

    ``A = (r_1 - r_2) / (std_group + eps)`` for the best row of a group, 0 for all others, ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        clip: how far a ratio may leave 1, both ways.
        beta, kl: weight and kind of a KL to ``ref``.
        std: ``none``, the unbiased gradient of the expected best of k; ``group`` divides by the group's standard deviation.
        unbiased, eps: of that standard deviation; eps in units of the reward.

    Paper: Optimizing Language Models for Inference Time Objectives using Reinforcement Learning, arXiv 2503.19595 (cited by verl).

    Deviations: two rows that share the best reward earn nothing, which is the same formula; no row is ever pushed down.

    Dialects:
    - verl 0.7: std="group": `grpo_passk`, divided by the group's standard deviation by default.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.best_only(feedback.rewards, feedback.group, std=std, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
    )
