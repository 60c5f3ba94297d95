"""Flash-GRPO: one random step for each group, with a gradient of the same size at every step."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, step_weights
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def flash_grpo(  # those of its GRPO, and one of its own
    *,
    rectify: bool = True,
    clip: Positive = 1e-3,
    beta: NotNegative = 0.0,
    kl: str = "per_scalar",
    ratio: str = "per_scalar",
    std: Literal["batch", "group", "none"] = "batch",
    unbiased: bool = False,
    eps: NotNegative = 1e-4,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """GRPO on one step of each row, the same in all rows of a group: an update costs one pass of the denoiser, whatever the steps are.

    With ``policy.schedule.branches: {use: one_step}``. The log-density of a step moves with the predicted velocity v as
    ``g_t = |d mean / d v| / std``, which differs by orders of magnitude between steps; w_t is ``1 / g_t`` over its mean of all trained
    cells, A as in ``flow_grpo``::

        loss = mean_i mean_t [ -w_t min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta KL(pi_it || ref_it) ]

    Args:
        rectify: weigh by w; False: all steps alike.
        clip, ratio: as in ``flow_grpo``; its code has 1e-3 for videos.
        beta, kl: weight and kind of a KL to ``ref``, which is not weighed; the paper has none.
        std, unbiased, eps, advantage_clip: of the advantage, as in ``flow_grpo``.

    Paper: Flash-GRPO: Efficient Alignment for Video Diffusion via One-Step Policy Optimization, arXiv 2605.15980.

    Deviations: the mean of weights is that of the rollout, and not of a micro-batch. Its code has a table of weights for the ten noisiest
    of
    20 steps of one schedule, and draws steps from these alone: ``window: {use: first_fraction, fraction: 0.5}``. Where it rests, in closed
    form (one Gaussian, a linear reward, ``std="none"``): at the best policy of rollouts with one random step, whose shift of step t is
    multiplied by w_t, so that it is no tilt of the reference unless ``rectify`` is off.
    """

    advantage = partial(advantages.limited, std=std, unbiased=unbiased, eps=eps, largest=advantage_clip)
    return policy_gradient(
        advantage=step_weights.rectified(advantage) if rectify else advantage,
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
        kinds=frozenset({"transition"}),
    )
