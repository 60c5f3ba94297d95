"""Scores that are linear in the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.scorers.heads._head import Head

__all__ = ["linear"]


def linear() -> Head:
    """Head: ``s = W h``, without a bias, as in transformers' sequence classification. W starts as 0, and so does every score.

    Examples:
        >>> linear().make(3, ["score"])(torch.ones(2, 3), {}).tolist()
        [[0.0], [0.0]]
    """
    return Head("linear", lambda width, scores: Linear(width, len(scores)))


class Linear(nn.Linear):
    """``[R, H] -> [R, T]``, whoever the rows are of."""

    def __init__(self, width: int, scores: int):
        super().__init__(width, scores, bias=False)
        torch.nn.init.zeros_(self.weight)

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        return super().forward(features)
