"""Scores that are linear in the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import NotNegative, Seed
from mmalign.policies.scorers.heads._head import Head

__all__ = ["linear"]


def linear(*, spread: NotNegative = 0.0, seed: Seed = 0) -> Head:
    """Head: ``s = W h``, without a bias, as in transformers' sequence classification.

    spread: standard deviation of W at the start; 0, and every score starts as 0. Scores that are compared by their products
        (``general_preference``), and several that are to differ though their labels are the same, take more: 0.02 is usual. seed: of W.

    Examples:
        >>> linear().make(3, ["score"])(torch.ones(2, 3), {}).tolist()
        [[0.0], [0.0]]
    """
    return Head("linear", lambda width, scores: Linear(width, len(scores), spread=spread, seed=seed))


class Linear(nn.Linear):
    """``[R, H] -> [R, T]``, whoever the rows are of."""

    def __init__(self, width: int, scores: int, *, spread: float = 0.0, seed: Seed = 0):
        super().__init__(width, scores, bias=False)
        torch.nn.init.normal_(self.weight, std=spread, generator=torch.Generator().manual_seed(seed))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        return super().forward(features)
