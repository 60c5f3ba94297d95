"""How unlike its nearest neighbour a sample is, of its own prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def nearest_distance(*, features: Callable[[Any], Tensor] | None = None) -> Callable[..., Tensor]:
    """Reward in 0..2: ``min_{j != i} 1 - cos(f_i, f_j)`` over the other samples of the same prompt. A prompt with one sample has none: NaN.

    What ``gardo`` multiplies advantages by; as a reward of its own it has a weight of 0 in a sum.

    features: outputs -> ``[B, D]``; the numbers of the outputs themselves by default. GARDO takes those of DINOv3.

    Source: GARDO, https://arxiv.org/abs/2512.24138

    Examples:
        >>> outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 5.0]])  # the second and the third point the same way
        >>> nearest_distance()(outputs, ["a", "a", "a"]).tolist()
        [1.0, 0.0, 0.0]
    """

    def reward(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        vectors = (features(outputs) if features is not None else outputs.flatten(1)).double()
        unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        distance = torch.full((len(prompts),), float("nan"), dtype=torch.float64)
        for prompt in dict.fromkeys(prompts):
            rows = torch.tensor([row for row, other in enumerate(prompts) if other == prompt])
            if len(rows) > 1:
                similar = (unit[rows] @ unit[rows].T).clamp(-1, 1).fill_diagonal_(-torch.inf)
                distance[rows] = (1 - similar.amax(1)).cpu()
        return distance

    return reward
