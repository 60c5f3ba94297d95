"""Advantages of rows as advantages of steps: what a denoising step counts for, by what is known of it before any update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.needs import MASK, SLOPE, STD
from mmalign.objectives.parts import Reading, live, read
from mmalign.types import Feedback, Need

Advantage = Callable[[Feedback], Tensor]


def by_noise(advantage: Advantage) -> Reading:
    """``A_i s_t / mean s``: a step counts by its std (TempFlow-GRPO, arXiv 2508.04324).

    advantage: of rows ``[B]``. The mean is that of all trained cells of the rollout.
    """
    return _weighed(advantage, lambda feedback: read(feedback, STD), frozenset({STD}))


def rectified(advantage: Advantage) -> Reading:
    """``A_i w_t / mean w``, ``w = std / slope``: gradients by the velocity are alike at all steps (Flash-GRPO, arXiv 2605.15980).

    advantage: of rows ``[B]``. The mean is that of all trained cells of the rollout. A step whose mean does not move counts 0.
    """

    def weight(feedback: Feedback) -> Tensor:
        slope = read(feedback, SLOPE)
        return torch.where(slope > 0, read(feedback, STD) / torch.where(slope > 0, slope, 1.0), 0.0)

    return _weighed(advantage, weight, frozenset({STD, SLOPE}))


def _weighed(advantage: Advantage, weight: Advantage, reads: frozenset[Need]) -> Reading:
    def of(feedback: Feedback) -> Tensor:
        mask = read(feedback, MASK)
        weights = live(weight(feedback), mask)
        mean = weights.sum() / mask.sum().clamp(min=1)
        return advantage(feedback)[:, None] * weights / torch.where(mean > 0, mean, 1.0)

    return Reading(of, reads | {MASK})
