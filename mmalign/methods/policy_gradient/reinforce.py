"""REINFORCE."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def reinforce(*, baseline: Literal["batch", "group", "none"] = "batch", beta: NotNegative = 0.0, kl: str = "k2") -> Method:
    """The score function times the reward: the gradient of the expected reward itself, on fresh rollouts.

    ``A_i = r_i - b``, and over live steps t of row i::

        loss = mean_i [ -A_i sum_t log pi_it ]

    Args:
        baseline: b: ``batch``, the mean of all known rewards; ``group``, that of the row's group; ``none``, 0.
        beta, kl: weight and kind of a KL to ``ref``, summed over steps. k1 has no gradient on average; k2's is the KL's.

    Paper: Simple statistical gradient-following algorithms for connectionist reinforcement learning, Williams 1992, doi
    10.1007/BF00992696.

    Deviations: the mean includes the row itself, which scales the gradient by (n - 1) / n (``rloo`` leaves it out). There is no ratio:
    several updates on one rollout are not corrected for.
    """
    if baseline not in ("batch", "group", "none"):
        raise UserError(f"baseline: got {baseline!r}, takes 'batch', 'group' or 'none'")

    def advantage(feedback: Feedback) -> Tensor:
        if baseline == "none":
            return feedback.rewards.double().nan_to_num(0.0)
        return advantages.centred(feedback.rewards, feedback.group if baseline == "group" else torch.zeros_like(feedback.group))

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        penalty=penalties.named(kl, beta=beta),
        weigh=partial(weights.constant_length, length=1),
    )
