"""Scores that depend on a latent of whoever they are of, which is told by what they have compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Seed
from mmalign.policies.scorers.heads._head import Head
from mmalign.types import UserError

__all__ = ["encoded_user"]


def encoded_user(*, most: Count = 8, width: Count = 16, seed: Seed = 0) -> Head:
    """Head: ``r_u = w h + z_u F h`` as of ``latent_user``, with ``q(z_u) = N(mu, s^2)`` encoded from comparisons of the person, a set.

    With d_1 .. d_n what the reader ``with_comparisons`` has put beside a row::

        c = (1/n) sum_j tanh(A d_j),    (mu, log s) = B tanh(C [c, log(1 + n)])

    which is the prior, mu = 0 and s = 1, where n is 0. Its numbers are those of ``latent_user``, ``scores: [score, kl, z1, z2]``, and so
    is the method, ``variational_preference``. Reads the column ``annotator``; nobody's name is listed anywhere.

    most: comparisons, as of the reader. width: of A's and C's outputs. seed: of A, C and F at the start; B is 0 then, and everybody is the
    prior.

    Source: VPL, arXiv 2408.10075, sec. 4; that the encoder is a mean over a set is Deep Sets', arXiv 1703.06114.

    Deviations: VPL's encoder attends over embeddings of both answers; here a comparison is the difference of their features.

    Errors: UserError for fewer than three scores, and under another reader.
    """

    def make(features: int, scores: list[str]) -> nn.Module:
        if len(scores) < 3:
            got = ", ".join(scores)
            raise UserError(f"policy.scores: got {got}; the head encoded_user gives [score, kl, z1, ...], takes three or more")
        return EncodedUser(features // (1 + most), len(scores) - 2, most=most, inner=width, seed=seed)

    return Head("encoded_user", make, frozenset({"annotator"}), views=1 + most)


class EncodedUser(nn.Module):
    """See ``encoded_user``. shared: ``[1, H]``. loads: F, ``[d, H]``. each: A, ``[W, H]``. all: C, ``[W, W + 1]``. out: B, ``[2 d, W]``."""

    def __init__(self, features: int, width: int, *, most: int, inner: int, seed: int):
        super().__init__()
        rng, self.most, self.width = torch.Generator().manual_seed(seed), most, width
        self.shared = nn.Parameter(torch.zeros(1, features))
        self.loads = nn.Parameter(torch.randn(width, features, generator=rng) / features**0.5)
        self.each = nn.Parameter(torch.randn(inner, features, generator=rng) / features**0.5)
        self.all = nn.Parameter(torch.randn(inner, inner + 1, generator=rng) / (inner + 1) ** 0.5)
        self.out = nn.Parameter(torch.zeros(2 * width, inner))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read here."""
        own, *beside = features.chunk(1 + self.most, 1)
        mean, log_std = self.believed(torch.stack(beside, 1))
        loads = own @ self.loads.T
        score = own @ self.shared.T + (mean * loads).sum(1, keepdim=True)
        divergence = (mean**2 + torch.exp(2 * log_std) - 1 - 2 * log_std).sum(1, keepdim=True) / 2
        return torch.cat([score, divergence, log_std.exp() * loads], 1)

    def believed(self, comparisons: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log s, ``[R, d]`` each, of differences ``[R, most, H]``, NaN where there is none."""
        there = ~comparisons.isnan().any(2, keepdim=True)
        count = there.sum(1).to(comparisons)
        said = torch.tanh(comparisons.nan_to_num(0.0) @ self.each.T) * there
        pooled = torch.cat([said.sum(1) / count.clamp(min=1), torch.log1p(count)], 1)
        numbers = torch.tanh(pooled @ self.all.T) @ self.out.T  # 0 where nothing was compared
        mean, log_std = numbers.chunk(2, 1)
        return mean, log_std
