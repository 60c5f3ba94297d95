"""A score, and beside it how near two views of an output are to each of some directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmalign.arguments.ranges import Seed
from mmalign.policies.scorers.heads._head import Head
from mmalign.types import UserError

__all__ = ["prototypes"]


def prototypes(*, seed: Seed = 0) -> Head:
    """Head: ``s = w h``, and the cosines of two views of h to K learned directions, the prototypes: ``cos(h', c_k), cos(h'', c_k)``.

    For the reader ``two_views``, which reads h, h' and h'', and the method ``bradley_terry_contrastive``. ``scores: [score, a1, a2, b1,
    b2]``
    has two prototypes: the first view's cosines, then the second one's. As a reward it is the score.

    seed: of the prototypes at the start, which have to be apart.

    Source: SwAV, arXiv 2006.09882, sec. 3.1 (features and prototypes of length 1).

    Errors: UserError for a number of scores that is not 1 + 2 K with K of 2 or more, and under another reader.

    Examples:
        >>> head = prototypes().make(6, ["score", "a1", "a2", "b1", "b2"])
        >>> numbers = head(torch.tensor([[1.0, 2.0, 3.0, 4.0, 6.0, 8.0]]), {})  # views of one direction
        >>> torch.allclose(numbers[:, 1:3], numbers[:, 3:5])
        True
    """

    def make(features: int, scores: list[str]) -> nn.Module:
        if len(scores) < 5 or len(scores) % 2 == 0:
            takes = "takes 1 + 2 K names, K of 2 or more"
            raise UserError(f"policy.scores: got {', '.join(scores)}; the head prototypes gives [score, a1 .. aK, b1 .. bK], {takes}")
        return Prototypes(features // 3, len(scores) // 2, seed=seed)

    return Head("prototypes", make, views=3)


class Prototypes(nn.Module):
    """See ``prototypes``. weight: w, ``[1, H]``. directions: ``[K, H]``."""

    def __init__(self, width: int, count: int, *, seed: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.directions = nn.Parameter(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        plain, *views = features.chunk(3, 1)
        directions = functional.normalize(self.directions, dim=1)
        return torch.cat([plain @ self.weight.T, *(functional.normalize(view, dim=1) @ directions.T for view in views)], 1)
