"""Rows of a rollout on the Gaussian world, and what rows of one branch share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import named
from mmalign.samplers.branches import Tree
from mmalign.stacking import stacked_by_name
from mmalign.types import Need, UserError


@dataclass(frozen=True)
class Paths:
    """A rollout's rows on this world. states: ``[B, T + 1, D]``. stochastic: ``[B, T]`` bool. means: ``[B, T, D]`` of the current policy's
    steps when they were sampled. refs: name -> mean and std, ``[B, T, D]``. adjoints: of the outcomes of
    steps ``[B, T, D]``, where a reward's gradient was carried back; end: the step whose outcome is clean."""

    states: Tensor
    stochastic: Tensor
    means: Tensor
    refs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    adjoints: Tensor | None = None
    end: int | None = None

    def take(self, rows: Tensor) -> Paths:
        refs = {name: (mean[rows], std[rows]) for name, (mean, std) in self.refs.items()}
        adjoints = None if self.adjoints is None else self.adjoints[rows]
        return Paths(self.states[rows], self.stochastic[rows], self.means[rows], refs, adjoints, self.end)

    @staticmethod
    def join(parts: Sequence[Paths]) -> Paths:
        means, stds = (stacked_by_name([{name: ref[at] for name, ref in part.refs.items()} for part in parts]) for at in (0, 1))
        refs = {name: (means[name], stds[name]) for name in means}
        states, stochastic = torch.cat([part.states for part in parts]), torch.cat([part.stochastic for part in parts])
        adjoints = [part.adjoints for part in parts if part.adjoints is not None]
        carried = torch.cat(adjoints) if adjoints else None
        return Paths(states, stochastic, torch.cat([part.means for part in parts]), refs, carried, parts[0].end)


def with_shared(noise: Tensor, tree: Tree, of_trunks: Tensor) -> Tensor:
    """Noise ``[T + 1, B, D]`` of the first states and of all steps, that of the trunk's up to the step at which a row leaves it.

    of_trunks: ``[T + 1, B, D]``, of which those of the first row on each trunk are taken.
    """
    shared = torch.arange(len(noise))[:, None, None] <= tree.leaves[None, :, None]
    return torch.where(shared, of_trunks[:, tree.first], noise)


def cells_of(function: Any, *tables: Tensor) -> Tensor:
    """A function of rows ``[N, D] -> [N]`` on tables ``[B, C, D] -> [B, C]``."""
    return function(*(table.flatten(0, 1) for table in tables)).unflatten(0, tables[0].shape[:2])


def references_of(kind: str, needs: frozenset[Need], known: dict[str, Any]) -> list[str]:
    """The references that ``needs`` asks for: all that are remembered for ``refs``, one for ``refs:NAME``."""
    names = {*named(kind, needs), *((known or ["ref"]) if Need(kind) in needs else ())}
    for name in names - set(known):
        raise UserError(f"{kind}: got {name!r}, which was not remembered; known: {', '.join(known) or 'none'}")
    return sorted(names)
