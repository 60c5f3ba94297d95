"""Clip-Cov: steps that would make the entropy fall fastest are left out."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, Fraction, NotNegative, Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.objectives.terms.gates import Gate
from mmalign.types import Method, Steps, UserError


def clip_cov(
    *,
    share: Fraction = 2e-4,
    low: Finite = 1.0,
    high: Finite = 5.0,
    pick: Literal["expected", "largest"] = "expected",
    clip: Positive = 0.2,
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO without a few of the steps whose covariance of advantage and log-probability is high: it is these that end exploration.

    ``c_it = (A_i - mean A)(log pi_it - mean log pi)`` over the live steps of an update; of those with ``low < c < high`` that PPO does
    not clip, ``share`` of all live steps (at least one) get m = 0, all others m = 1::

        loss = mean_it [ -m_it min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        share: fraction of live steps that are left out. low, high: between which covariances.
        pick: ``expected``, each candidate's m is the probability to be kept by the paper's random draw, so that the loss is the
            draw's mean, and no seed is needed; ``largest``, the largest covariances.
        clip: how far a ratio may leave 1, both ways.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, sec. 4; its numbers are the
    defaults, as verl has them.

    Deviations: the paper draws its candidates at random. Means are those of the whole update; verl takes them, and ``share``, over
    a micro-batch, so that its choice depends on the split.

    Dialects:
    - verl 0.7: eps=1e-6: `clip_cov`, with an unseeded random draw in each micro-batch.
    """
    if not 0 < share <= 1 or pick not in ("expected", "largest"):
        raise UserError(f"share, pick: got {share} and {pick!r}, takes a number in 0..1, and 'expected' or 'largest'")
    surrogate = partial(surrogates.clipped, low=clip, high=clip)

    def kept(steps: Steps, advantage: Tensor) -> Tensor:
        covariance = gates.covariance(steps, advantage)
        candidates = (covariance > low) & (covariance < high) & steps.mask & ~surrogate(ratios.per_step(steps), advantage).clipped
        count = max(int(share * int(steps.mask.sum())), 1)
        if pick == "largest":
            return (~gates.largest(covariance, candidates, count)).double()
        left = 1 - min(1.0, count / max(int(candidates.sum()), 1))
        return torch.where(candidates, torch.tensor(left, dtype=torch.float64), 1.0)

    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogate,
        gate=Gate(lambda steps, signal: signal.surveyed[..., 0], survey=gates.surveyed(kept)),
        weigh=weights.token_mean,
    )
