"""ReMax."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, comparisons, returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.critics import priced
from mmalign.types import Behavior, Feedback, Method


def remax(*, beta: NotNegative = 0.0, gamma: Proportion = 1.0, largest: Positive | None = None) -> Method:
    """REINFORCE whose baseline is the reward of the policy's greedy answer to the same prompt.

    With g the greedy row of i's group, ``A_it = r_i - r_g - beta sum_{s >= t} gamma^(s - t) (log pi_old - log ref)_is``, and::

        loss = mean_i [ -sum_t A_it log pi_it ]

    Args:
        beta: price of a nat of KL to ``ref`` at a step, in units of the reward; 0 needs no reference.
        gamma: discount of a step's price. largest: bound of the advantage, or None.

    Paper: ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models, arXiv
    2310.10505.

    Deviations: the greedy row is one more in its prompt's group: the likeliest token at every step; of a denoiser, the steps of the
    ODE. It has no random decision, so it has no live step and is never trained. A group without one has advantage 0, and is not kept.
    """

    def baseline(feedback: Feedback) -> Tensor:
        """``[B]``, NaN in a group without a greedy row, and at that row itself."""
        greedy = comparisons.drawn(feedback, "greedy")
        mean = advantages.group_mean(torch.where(greedy, feedback.rewards, torch.nan), feedback.group)
        return torch.where(feedback.drawn["greedy"], torch.nan, mean)

    def advantage(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        ahead = feedback.rewards - baseline(feedback)
        better = ahead[:, None].expand(inside.shape)
        if beta:
            better = better - beta * returns.to_go(returns.kl(feedback), inside, gamma=gamma)
        better = torch.where(inside & ~ahead.isnan()[:, None], better, 0.0)
        return advantages.clip(better, largest=largest)

    method = policy_gradient(
        advantage=Reading(advantage, priced(beta)),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=partial(weights.constant_length, length=1),
        keep=lambda feedback: ~(feedback.rewards - baseline(feedback)).isnan(),
    )
    return replace(method, behaviors=(Behavior("greedy", {"current": 1.0}, part=0, greedy=True),))
