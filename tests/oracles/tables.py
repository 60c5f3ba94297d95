"""Random tables that every method is tried on, small enough for loops and irregular enough to show a mistake.

A table starts at a leaf (logits, or means of Gaussian steps), as a policy's does, so that a gradient is one through the policy.
Groups have 4, 3, 2, 2 and 1 rows in mixed order; one group is tied, one reward is missing, one row is empty, and lengths differ.
Rows 2k and 2k + 1 are a pair, named in both orders; one is a tie, one says nothing, and two are soft, on either side of a tie.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.types import Feedback, Kind, Steps

GROUP = [7, 2, 7, 5, 2, 9, 7, 5, 2, 7, 4, 4]
ROWS, COLUMNS, SIZE = len(GROUP), 5, 6
TIED, MISSING, EMPTY = 4, 8, 6
PAIRS = [[0, 1], [3, 2], [4, 5], [7, 6], [9, 8], [10, 11]]
STRENGTH = [1.0, 0.8, 0.3, 1.0, math.nan, 0.5]


@dataclass(frozen=True)
class Table:
    """Everything a method may see, and what is behind it, ``[B, T, D]`` each.

    For transitions the Gaussians' means (``mean, mean_ref``), for bounds what was predicted, and its ``target``.
    """

    kind: Kind
    leaf: Tensor
    log_probs: Tensor
    old: Tensor
    ref: Tensor
    kl: Tensor
    std: Tensor
    dt: Tensor
    mask: Tensor
    rewards: Tensor
    group: Tensor
    lengths: Tensor
    noise: Tensor
    pairs: Tensor
    strength: Tensor
    event_size: int
    mean: Tensor | None = None
    mean_ref: Tensor | None = None
    target: Tensor | None = None

    def steps(self, needs: frozenset[str] = frozenset({"old", "refs", "kls", "std", "dt", "noise"})) -> Steps:
        """The Steps of the table, holding what is needed and nothing else."""
        words = {need.split(":")[0] for need in needs}
        return Steps(
            self.log_probs,
            self.mask,
            self.old if "old" in words else None,
            {"ref": self.ref} if "refs" in words else {},
            {"ref": self.kl} if "kls" in words else {},
            {name: fact for name, fact in (("std", self.std), ("dt", self.dt), ("noise", self.noise)) if name in words},
            self.event_size,
            self.kind,
        )

    def feedback(self) -> Feedback:
        return Feedback(self.rewards, self.group, pairs=self.pairs, strength=self.strength, lengths=self.lengths)


def table(kind: Kind, seed: int = 0, leaf: Tensor | None = None) -> Table:
    """The table of a seed; ``leaf`` replaces the current parameters, for gradients by hand."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    current, sampled, reference = (normal(ROWS, COLUMNS, SIZE) * 0.4 for _ in range(3))
    leaf = current.clone().requires_grad_() if leaf is None else leaf
    std, dt = 0.5 + torch.rand(ROWS, COLUMNS, generator=rng).double(), -0.05 - 0.2 * torch.rand(ROWS, COLUMNS, generator=rng).double()
    token = torch.randint(SIZE, (ROWS, COLUMNS, 1), generator=rng)
    noise, rewards = normal(ROWS, COLUMNS, SIZE), normal(ROWS)
    lengths = torch.tensor([5, 3, 4, 5, 2, 5, 0, 1, 5, 4, 3, 5])
    mask = torch.arange(COLUMNS) < lengths[:, None]
    mask[0, 2] = False  # a hole, as a tool's answer leaves one
    group = torch.tensor(GROUP)
    rewards[group == TIED], rewards[MISSING] = 0.1, math.nan
    common = {"std": std, "dt": dt, "mask": mask, "rewards": rewards, "group": group, "lengths": lengths}
    level = torch.rand(ROWS // 2, COLUMNS, generator=rng).double().repeat_interleave(2, 0)
    common |= {"noise": level, "pairs": torch.tensor(PAIRS), "strength": torch.tensor(STRENGTH).double()}

    if kind == "token":
        log_probs, old, ref = (parameters.log_softmax(-1) for parameters in (leaf, sampled, reference))
        kl = (log_probs.exp() * (log_probs - ref)).sum(-1)
        picked = [probabilities.gather(-1, token).squeeze(-1) for probabilities in (log_probs, old, ref)]
        return Table(kind, leaf, *picked, kl, event_size=1, **common)  # type: ignore[arg-type]

    if kind == "bound":
        errors = [-0.5 * ((predicted - noise) ** 2).sum(-1) for predicted in (leaf, sampled, reference)]
        return Table(kind, leaf, *errors, torch.zeros_like(std), event_size=SIZE, mean=leaf, mean_ref=reference, target=noise, **common)  # type: ignore[arg-type]

    x_next = sampled + std[..., None] * noise
    constant = SIZE * (std.log() + 0.5 * math.log(2 * math.pi))
    densities = [-((x_next - mean) ** 2).sum(-1) / (2 * std**2) - constant for mean in (leaf, sampled, reference)]
    kl = ((leaf - reference) ** 2).sum(-1) / (2 * std**2)
    return Table(kind, leaf, *densities, kl, event_size=SIZE, mean=leaf, mean_ref=reference, **common)  # type: ignore[arg-type]
