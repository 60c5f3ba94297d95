"""GRPO done right."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def dr_grpo(
    *,
    length: Positive,
    clip: Positive = 0.2,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    std: Literal["none", "group", "batch"] = "none",
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO without its two biases: no division by the group's spread, none by the row's own length.

    ``A_i = r_i - mean_group``, and over live steps t of row i::

        loss = mean_i [ 1 / length * sum_t -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        length: the constant that stands in for every row's length, in steps: the generation budget, or the number of denoising
            steps. It must be given, because it scales the loss: the width of a padded batch would change from batch to batch.
        clip: how far a ratio may leave 1, both ways.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        std, eps: a standard deviation to divide by after all, which is what this method is against; eps in units of the reward.

    Paper: Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783.

    Deviations: the paper's objective has no 1 / length at all, its code has; they differ by this constant alone.

    Dialects:
    - TRL 1.16: length=256, std="group", kl="k3_weighted": `loss_type="dr_grpo"` takes `max_completion_length` for the length, and
      still divides by the standard deviation unless `scale_rewards` is off.

    Examples:
        >>> from mmalign.types import Feedback
        >>> method = mm.methods.dr_grpo(length=4)
        >>> method.signal(Feedback(torch.tensor([0.0, 6.0]).double(), group=torch.tensor([0, 0]))).tolist()  # r - 3, undivided
        [[-3.0], [3.0]]
        >>> method.weigh(torch.tensor([[True, True], [True, False]])).tolist()  # 1 / (2 rows * 4), long or short
        [[0.125, 0.125], [0.125, 0.0]]
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, std=std, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=partial(weights.constant_length, length=length),
    )
