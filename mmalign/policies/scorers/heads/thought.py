"""A score behind what was said before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.scorers.heads._head import Head
from mmalign.types import UserError

__all__ = ["thought"]


def thought() -> Head:
    """Head: ``s = W h``, and beside it what the words cost that ``thinking`` has read: ``scores: [score, said, told]``.

    For the reader ``thinking``, whose last two features those costs are, and the method ``bradley_terry_thinking``.

    Errors: UserError for another number of scores than three.

    Examples:
        >>> thought().make(5, ["score", "said", "told"])(torch.tensor([[1.0, 2.0, 3.0, 0.5, 0.25]]), {}).tolist()
        [[0.0, 0.5, 0.25]]
    """

    def make(features: int, scores: list[str]) -> nn.Module:
        if len(scores) != 3:
            raise UserError(f"policy.scores: got {', '.join(scores)}; the head thought gives [score, said, told], takes three names")
        return AfterThought(features - 2)

    return Head("thought", make)


class AfterThought(nn.Module):
    """See ``thought``. weight: W, ``[1, H]``."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        return torch.cat([features[:, :-2] @ self.weight.T, features[:, -2:]], 1)
