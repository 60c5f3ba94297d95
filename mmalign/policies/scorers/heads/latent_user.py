"""Scores that depend on a latent of whoever they are of, and how much is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Seed
from mmalign.policies.scorers.heads._annotators import Annotators
from mmalign.policies.scorers.heads._head import Head
from mmalign.types import UserError

__all__ = ["latent_user"]


def latent_user(*, annotators: list[str] | str, seed: Seed = 0) -> Head:
    """Head: ``r_u = w h + z_u F h``, z_u a person's latent, of which ``N(mu_u, s_u^2)`` is believed; for ``variational_preference``.

    Its numbers are ``m = w h + mu_u F h``, which is the score, ``KL(N(mu_u, s_u^2) | N(0, 1))`` in nats, and ``s_uj (F h)_j`` for each of
    the d = (number of scores - 2) parts of z, as ``scores: [score, kl, z1, z2]``. Reads the column ``annotator``; of a row of nobody known
    (an empty name, or none) the prior is believed, mu = 0 and s = 1.

    Args:
        annotators: their names, or a text file with one in a line.
        seed: of F and mu at the start, which have to be apart.

    Source: VPL, arXiv 2408.10075, with q of each person by itself; ``encoded_user`` has its encoder.

    Errors: UserError for no name, one twice, a file that is not there, and fewer than three scores; when a row is scored, for a name that
    is not among them.

    Examples:
        >>> head = latent_user(annotators=["anna", "ben"]).make(3, ["score", "kl", "z"])
        >>> head(torch.zeros(2, 3), {"annotator": ["anna", ""]})[1].tolist()  # nothing to score, and the prior
        [0.0, 0.0, 0.0]
    """
    people = Annotators(annotators)

    def make(features: int, scores: list[str]) -> nn.Module:
        if len(scores) < 3:
            raise UserError(f"policy.scores: got {', '.join(scores)}; the head latent_user gives [score, kl, z1, ...], takes three or more")
        return LatentUser(features, len(scores) - 2, people, seed=seed)

    return Head("latent_user", make, frozenset({"annotator"}))


class LatentUser(nn.Module):
    """See ``latent_user``. shared: ``[1, H]``. loads: F, ``[d, H]``. mean, log_std: ``[annotators, d]``."""

    def __init__(self, features: int, width: int, people: Annotators, *, seed: int):
        super().__init__()
        rng, self.people = torch.Generator().manual_seed(seed), people
        self.shared = nn.Parameter(torch.zeros(1, features))
        self.loads = nn.Parameter(torch.randn(width, features, generator=rng) / features**0.5)
        self.mean = nn.Parameter(torch.randn(len(people), width, generator=rng))
        self.log_std = nn.Parameter(torch.zeros(len(people), width))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]]) -> Tensor:
        """columns: ``annotator``."""
        rows, nobody = self.people.rows(columns["annotator"]), torch.zeros_like(self.mean[:1])
        mean, log_std = torch.cat([self.mean, nobody])[rows], torch.cat([self.log_std, nobody])[rows]
        loads = features @ self.loads.T
        score = features @ self.shared.T + (mean * loads).sum(1, keepdim=True)
        divergence = (mean**2 + torch.exp(2 * log_std) - 1 - 2 * log_std).sum(1, keepdim=True) / 2
        return torch.cat([score, divergence, log_std.exp() * loads], 1)
