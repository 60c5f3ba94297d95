"""How far a sample is from the others of its prompt: what keeps a group from becoming one picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.types import UserError


def novelty(*, scale: Positive, features: Callable[[Any], Tensor] | None = None) -> Callable[..., Tensor]:
    """Reward in 0..1: ``min(1, d / scale)``, d the root-mean-square difference to the other samples of the same prompt.

    ``d_i^2 = mean_{j != i} mean_d (f_i - f_j)^2 / 2``, so that the mean of ``d^2`` over a group is the variance of its features:
    the policy gradient of this reward is one of the group's spread. Beyond ``scale``, the spread that is wanted, nothing more
    is gained, so that outliers (a wrong picture is far from all others) do not win by it. A prompt with one sample has no
    others: NaN.

    scale: in units of the features. features: outputs -> ``[B, D]``; the numbers of the outputs themselves by default.
    Not differentiable through ``min``. Source: the variance identity. GARDO multiplies positive advantages by a distance to the
    nearest neighbour instead, which pays for nothing once every sample of a group is right.
    """
    if not scale > 0:
        raise UserError(f"novelty.scale: got {scale}, takes a number above 0")

    def reward(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        vectors = (features(outputs) if features is not None else outputs.flatten(1)).double()
        distance = torch.full((len(prompts),), float("nan"), dtype=torch.float64)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([row for row, other in enumerate(prompts) if other == prompt])
            if len(rows) > 1:
                squared = torch.cdist(vectors[rows], vectors[rows]).square().sum(1) / (len(rows) - 1)
                distance[rows] = (squared / (2 * vectors.shape[1])).sqrt().cpu()
        return (distance / scale).clamp(max=1)

    return reward
