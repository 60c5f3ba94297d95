"""DPOK: policy optimisation of a diffusion model with the exact KL of every step."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def dpok(
    *,
    alpha: Positive = 10.0,
    beta: NotNegative = 0.01,
    baseline: Literal["none", "group", "batch"] = "group",
    clip: Positive | None = None,
    ratio: str = "per_step",
) -> Method:
    """REINFORCE on the denoising steps, with a KL to the pretrained model that is computed step by step, and not sampled.

    ``A_i = r_i - b``, and over trained steps t of row i::

        loss = mean_i sum_t [ -alpha A_i log pi_it + beta KL(pi_it || ref_it) ]

    Args:
        alpha, beta: weights of the reward, and of the KL in nats. The best policy on the trained steps is ``ref exp(alpha r / beta) / Z``.
        baseline: b: ``group``, the mean of the row's group, ``batch``, of all known rewards; ``none``, 0. A group of G whose mean includes
            the row itself takes ``(G - 1) / G`` of alpha.
        clip: for several updates on one rollout: ``-alpha min(rho A, clip(rho, 1 - clip, 1 + clip) A)`` in place of the score function.
        ratio: of ``clip``, as in ``flow_grpo``.

    Paper: DPOK: Reinforcement Learning for Fine-tuning Text-to-Image Diffusion Models, arXiv 2305.16381, eq. 5 and 7, algorithm 1.

    Deviations: the paper learns a value of ``(x_t, prompt)`` as its baseline, where we take the group's mean, which needs no second model
    and serves the same end. Its code puts a squared difference of predicted noises for the KL, and clips the ratio whatever the sign of
    the advantage; d3po's ``train_dpok`` takes a KL over the rows of a batch, which is another thing.
    """
    if baseline not in ("none", "group", "batch"):
        raise UserError(f"baseline: got {baseline!r}, takes 'none', 'group' or 'batch'")

    def advantage(feedback: Feedback) -> Tensor:
        if baseline == "none":
            return alpha * feedback.rewards.double().nan_to_num(0.0)
        among = feedback.group if baseline == "group" else torch.zeros_like(feedback.group)
        return alpha * advantages.centred(feedback.rewards, among)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.LIKELIHOOD if clip is None else ratios.named(ratio),
        surrogate=surrogates.likelihood if clip is None else partial(surrogates.clipped, low=min(clip, 1.0), high=clip),
        penalty=penalties.named("exact", beta=beta),
        weigh=partial(weights.constant_length, length=1),
        kinds=frozenset({"transition"}),
    )
