"""Denoising Diffusion Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def ddpo(
    *,
    estimator: Literal["importance", "score"] = "importance",
    clip: Positive = 1e-4,
    ratio: Literal["per_scalar", "per_step"] = "per_scalar",
    baseline: Literal["group", "batch"] = "group",
    eps: NotNegative = 1e-6,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """Denoising as a decision process of T steps, whose policy gradient needs no likelihood of the image.

    ``A_i = (r_i - mean) / (std + eps)``, limited to ``+-advantage_clip``, and over trained steps t of row i, by importance and by score::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]
        loss = mean_i mean_t [ -A_i log pi_it / D ]

    Args:
        estimator: ``importance`` (DDPO-IS), for several updates on one rollout; ``score`` (DDPO-SF), REINFORCE, for one: a second update on
            the same rollout is biased.
        clip: of ``importance``: how far a ratio may leave 1, as in ``flow_grpo``.
        ratio: ``per_scalar``, log-densities over D, as the code has them; ``per_step``, those of the whole latent, in nats.
        baseline: whose mean and standard deviation: ``group``, the row's prompt's; ``batch``, all rewards'.
        eps: added to that standard deviation, in units of the reward.
        advantage_clip: largest advantage, or None.

    Paper: Training Diffusion Models with Reinforcement Learning, arXiv 2305.13301, sec. 4.3 and 5.

    Deviations: ddpo-pytorch keeps the last 16 or 32 rewards of each prompt over epochs, and takes the batch's statistics of a prompt that
    has fewer; here a prompt's statistics are those of its rows in this rollout. The paper sums over steps; the code takes means.

    Dialects:
    - ddpo-pytorch: clip=1e-4, advantage_clip=5.0: as here.
    """
    if estimator not in ("importance", "score"):
        raise UserError(f"estimator: got {estimator!r}, takes 'importance' or 'score'")
    if ratio not in ("per_scalar", "per_step"):
        raise UserError(f"ratio: got {ratio!r}, takes 'per_scalar' or 'per_step'")
    if baseline not in ("group", "batch"):
        raise UserError(f"baseline: got {baseline!r}, takes 'group' or 'batch'")

    def advantage(feedback: Feedback) -> Tensor:
        among = feedback.group if baseline == "group" else torch.zeros_like(feedback.group)
        raw = advantages.normalised(feedback.rewards, among, unbiased=False, eps=eps)
        return advantages.clip(raw, largest=advantage_clip)

    if estimator == "score":
        log_prob = ratios.LIKELIHOOD if ratio == "per_step" else ratios.LIKELIHOOD_PER_SCALAR
        return policy_gradient(advantage=advantage, log_ratio=log_prob, surrogate=surrogates.likelihood, weigh=weights.sequence_mean)
    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.sequence_mean,
    )
