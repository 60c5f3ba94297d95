"""Rows that grow on trunks (``samplers.branches``): a trunk is sampled once, and its rows go on from its latents by replaying its call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.rollouts.recording import Begun, How, Rows, Tape, record
from mmalign.policies.pipelines.rollouts.replay import Played
from mmalign.policies.pipelines.rollouts.trajectories import Trajectories
from mmalign.samplers.branches import Tree
from mmalign.types import Level, UserError

OF_TRUNKS = 0x2545F4914F6CDD1D  # so that no row's noise is its trunk's


def grown(policy: Played, rows: Rows, tree: Tree, how: How) -> tuple[list[Tape], list[Tensor]]:
    """What was recorded, and the places ``[R]`` of the rows of each tape. rows, tree: of all groups.

    Errors: UserError for a pipeline with a second stream, where rows end before their last step.
    """
    alone = torch.nonzero(tree.leaves < 0).flatten()
    tapes, places = list[Tape](), list[Tensor]()
    for at in alone.split(policy.rows_at_once) if len(alone) else ():
        tapes.append(record(policy, rows.take(at), _cells(tree, at), how))
        places.append(at)
    first, leaving = tree.first, torch.nonzero(tree.leaves >= 0).flatten()
    trunks = first[leaving].unique()
    for some in trunks.split(policy.rows_at_once) if len(trunks) else ():
        trunk = _trunk(policy, rows, tree, some)
        own = leaving[torch.isin(first[leaving], some)]
        for at in _alike(tree, own, policy.rows_at_once):
            begun = _begun(trunk, torch.searchsorted(some, first[at]), int(tree.leaves[at[0]]), int(tree.ends[at[0]]))
            if begun.beside and begun.end < tree.trained.shape[1]:
                name = type(policy.pipe).__name__
                raise UserError(f"policy.schedule.branches: {name} has a second stream, which a row cannot end early; takes at_each_step")
            tapes.append(record(policy, rows.take(at), _cells(tree, at), how, begun=begun))
            places.append(at)
    return tapes, places


def told(tree: Tree, held: Trajectories, levels: Level | None) -> dict[str, list[Any]]:
    """Columns for rewards, where outputs are clean estimates: of each row its ``level``, (signal, noise), at the step whose estimate it is,
    and the ``noisy`` latent that the estimate was made of; (1, 0) and the sample itself, of a row that goes to its end.
    None where all do.

    levels: ``[T + 1]`` of the schedule.
    """
    num_steps = tree.trained.shape[1]
    if levels is None or bool((tree.ends >= num_steps).all()):
        return {}
    early, at = tree.ends < num_steps, tree.ends.clamp(max=num_steps - 1)
    rows = range(len(at))
    signal, noise = (torch.where(early, value.double().cpu()[at], whole).tolist() for value, whole in zip(levels, (1.0, 0.0), strict=True))
    noisy = [held.x[at[row], row] if early[row] else held.x_next[-1, row] for row in rows]
    return {"level": list(zip(signal, noise, strict=True)), "noisy": noisy}


def _trunk(policy: Played, rows: Rows, tree: Tree, some: Tensor) -> Tape:
    """The trunks of which ``some`` are the first rows, with the kernel's Gaussians at the steps at which rows leave them."""
    own = torch.isin(tree.trunk, tree.trunk[some])
    left = torch.isin(torch.arange(tree.trained.shape[1]), tree.leaves[own])
    random = torch.stack([_random(tree, tree.trunk == tree.trunk[row]) for row in some.tolist()])
    seeded = rows.take(some)
    seeded = seeded._replace(seeds=[(seed ^ OF_TRUNKS) % 2**62 for seed in seeded.seeds])
    return record(policy, seeded, lambda num_steps: (random, torch.zeros_like(random)), How(lambda trained: left, decode=False))


def _random(tree: Tree, own: Tensor) -> Tensor:
    """``[T]`` bool: the steps at which a trunk takes noise: at which its rows do before they leave it."""
    before = torch.arange(tree.random.shape[1]) < tree.leaves[own, None]
    return (tree.random[own] & before).any(0)


def _begun(trunk: Tape, which: Tensor, step: int, end: int) -> Begun:
    """What rows take over that leave the trunks ``which [R]`` of a tape at a step."""
    mean, std = trunk.gaussians[step]
    told = len(trunk.beside) // len(trunk.x) * (step + 1)
    beside = [answer[which] for answer in trunk.beside[:told]]
    return Begun(step, trunk.x_next[:step, which], beside, mean[which], std[which] if std.ndim else std, end)


def _alike(tree: Tree, rows: Tensor, most: int) -> Sequence[Tensor]:
    """Rows by the step at which they leave and end, in parts of at most so many."""
    kinds = torch.stack([tree.leaves[rows], tree.ends[rows]], 1)
    kind = kinds.unique(dim=0, return_inverse=True)[1]
    return [part for number in range(int(kind.max()) + 1) for part in rows[kind == number].split(most)]


def _cells(tree: Tree, at: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:
    return lambda num_steps: (tree.random[at], tree.trained[at])
