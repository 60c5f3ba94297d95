"""Reward-weighted regression."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def reward_weighted_regression(
    *, temperature: Positive = 1.0, over: Literal["group", "batch"] = "group", largest: Positive | None = None
) -> Method:
    """Likelihood of given or sampled rows, each weighted by the exponential of its reward.

    ``w_i = exp(r_i / temperature)`` over the mean of it in i's group, or in the batch::

        loss = mean_i mean_t [ -w_i log pi_it ]

    Args:
        temperature: reward units for a factor e of weight.
        over: among which rows weights have mean 1. ``group``: prompts count the same, whatever their rewards are.
        largest: bound of a weight, or None.

    Paper: Reinforcement learning by reward-weighted regression for operational space control, Peters and Schaal, ICML 2007, doi
    10.1145/1273496.1273590; on denoising losses in Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301.

    Deviations: the paper adapts the temperature. A tied group has weight 1 for every row: it is imitated as it is. On a bound (denoising
    errors) log pi is the bound: the usual denoising loss, halved.
    """
    if temperature <= 0 or over not in ("group", "batch") or (largest is not None and largest <= 0):
        raise UserError(
            f"temperature, over, largest: got {temperature}, {over!r} and {largest}, takes above 0, 'group' or 'batch', above 0"
        )

    def advantage(feedback: Feedback) -> Tensor:
        group = feedback.group if over == "group" else torch.zeros_like(feedback.group)
        weight = advantages.exponential(feedback.rewards, group, temperature=temperature)
        return weight if largest is None else weight.clamp(max=largest)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=weights.sequence_mean,
        kinds=ANY,
    )
