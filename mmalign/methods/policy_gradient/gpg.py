"""Group Policy Gradient."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def gpg(*, std: Literal["none", "group"] = "none", correct: bool = True, eps: NotNegative = 1e-4) -> Method:
    """The plain policy gradient with a group baseline, and a correction for the groups that say nothing: no ratio, clip, or KL.

    ``A_i = alpha (r_i - mean_group) / F``, ``alpha = rows / rows of groups that are not tied``, and::

        loss = mean_it [ -A_i log pi_it ]

    Args:
        std: F: ``none``, 1; ``group``, the group's standard deviation plus eps.
        correct: whether alpha makes up for tied groups, whose gradient is 0 but which count in the mean.
        eps: in units of the reward.

    Paper: GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546.

    Deviations: a row without a reward counts in neither number of alpha.

    Dialects:
    - verl 0.7: correct=False: its alpha counts rows whose reward is not 0, which for rewards of 0 and 1 is the number of right answers;
      multiply by the rows of a batch over their number.
    """

    def advantage(feedback: Feedback) -> Tensor:
        centred = advantages.normalised(feedback.rewards, feedback.group, std=std, eps=eps)
        informative = advantages.informative(feedback.rewards, feedback.group).sum().clamp(min=1)
        rows = (~feedback.rewards.isnan()).sum()
        return centred * rows / informative if correct else centred

    return policy_gradient(advantage=advantage, log_ratio=ratios.LIKELIHOOD, surrogate=surrogates.likelihood, weigh=weights.token_mean)
