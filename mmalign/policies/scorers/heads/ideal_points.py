"""Scores that depend on whose they are: how near an output is to what somebody would like best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Seed
from mmalign.policies.scorers.heads._annotators import Annotators
from mmalign.policies.scorers.heads._head import Head

__all__ = ["ideal_points"]


def ideal_points(*, annotators: list[str] | str, prototypes: Count = 2, width: Count = 8, seed: Seed = 0) -> Head:
    """Head: ``s_u = -|A h - sum_k w_uk p_k|^2``: u's ideal is a mixture of K prototypes that all share, w_u a softmax of K numbers of u's.

    Reads the column ``annotator``, which records have, and prompts may have. A row of nobody known (an empty name, or none) is scored by
    the mean of all annotators' weights. Two groups of opposite tastes are two prototypes; one score for all would fit neither.

    Args:
        annotators: their names, or a text file with one in a line.
        prototypes: K. width: of the space that ideals lie in.
        seed: of A, prototypes and weights at the start, which have to be apart.

    Source: PAL, arXiv 2406.08469, sec. 3 (model A). Several scores have an A and prototypes each, and one set of weights.

    Errors: UserError for no name, one twice, or a file that is not there; when a row is scored, for a name that is not among them.

    Examples:
        >>> head = ideal_points(annotators=["anna", "ben"]).make(3, ["score"])
        >>> head(torch.zeros(3, 3), {"annotator": ["anna", "ben", ""]}).shape
        torch.Size([3, 1])
    """
    people = Annotators(annotators)
    return Head(
        "ideal_points",
        lambda features, scores: IdealPoints(features, len(scores), people, prototypes=prototypes, width=width, seed=seed),
        frozenset({"annotator"}),
    )


class IdealPoints(nn.Module):
    """See ``ideal_points``. project: ``[T width, H]``. prototypes: ``[T, K, width]``. weights: ``[annotators, K]`` before the softmax."""

    def __init__(self, features: int, scores: int, people: Annotators, *, prototypes: int, width: int, seed: int):
        super().__init__()
        rng, self.shape, self.people = torch.Generator().manual_seed(seed), (scores, width), people
        self.project = nn.Parameter(torch.randn(scores * width, features, generator=rng) / features**0.5)
        self.prototypes = nn.Parameter(torch.randn(scores, prototypes, width, generator=rng))
        self.weights = nn.Parameter(torch.randn(len(people), prototypes, generator=rng))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """columns: ``annotator``."""
        shares = torch.softmax(self.weights, 1)
        shares = torch.cat([shares, shares.mean(0, keepdim=True)])  # the last is nobody's
        ideals = torch.einsum("rk,tkd->rtd", shares[self.people.rows(columns["annotator"])], self.prototypes)
        points = (features @ self.project.T).view(len(features), *self.shape)
        return -((points - ideals) ** 2).sum(-1)
