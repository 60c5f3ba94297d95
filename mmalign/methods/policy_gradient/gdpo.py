"""Group reward-Decoupled Normalization Policy Optimization."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def gdpo(
    *,
    reward_weights: Mapping[str, Finite] | None = None,
    clip: Positive = 0.2,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO with several rewards, each normalised in its group before they are added: none drowns the others.

    ``z_ik = (r_ik - mean_group) / (std_group + eps)`` for every reward k, ``A = (s - mean) / (std + eps)`` over the batch of
    ``s_i = sum_k w_k z_ik``, and::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        reward_weights: name -> w, of ``Feedback.parts``; None: all of them, 1 each.
        clip: how far a ratio may leave 1, both ways.
        beta, kl: weight and kind of a KL to ``ref``.
        eps: in units of each reward, and of the sum.

    Errors: UserError where a reward is named that is not there.

    Paper: GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization, arXiv 2601.05242.

    Deviations: a reward that is missing for a row counts 0 in its sum; a row whose total reward is missing has advantage 0. Standard
    deviations are unbiased. A reward that is tied in a group adds exactly 0.

    Dialects:
    - TRL 1.16: kl="k3_weighted": `multi_objective_aggregation="normalize_then_sum"` with `loss_type="grpo"`.
    """

    def advantage(feedback: Feedback) -> Tensor:
        if not feedback.parts:
            raise UserError("Feedback.parts: got none, gdpo takes every reward by itself")
        weight_of = dict.fromkeys(feedback.parts, 1.0) if reward_weights is None else reward_weights
        missing = feedback.rewards.isnan()
        parts = {name: torch.where(missing, torch.nan, values.double()) for name, values in feedback.parts.items()}
        return advantages.decoupled(parts, feedback.group, weights=weight_of, eps=eps)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
