"""Rows of a group that share the beginning of their trajectories, so that what they earn differs by what came after it alone.

A row grows on a **trunk**, a trajectory that is sampled once and that no reward sees: it has the trunk's latents up to the step at which it
leaves, and that step's noise is the first of its own. Rows that leave one trunk at one step are a **branch**. A structure is a function
``(trained [T], random [T], group_size, rng) -> Tree`` of one group; trained, random: the steps of ``schedule.window``, and those that may
take noise. It is asked once for each group of a rollout, and ``rng`` is its only source of randomness.

Shared steps cost a denoiser's pass once for a trunk: ``passes`` counts them. Errors: UserError, where a structure is asked, for a group
that its branches do not divide, and for a trajectory without a trained step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.ranges import MANY, within
from mmalign.types import UserError

__all__ = ["at_each_step", "candidates", "fork", "one_step"]


class Tree(NamedTuple):
    """The rows of one group, G of them, over T steps.

    trained, random: ``[G, T]`` bool, the steps of a row that are trained, and those that take noise, the trunk's among them.
    trunk: ``[G]`` int64, the number of the trunk that a row grows on, from 0. leaves: ``[G]`` int64, the step at which it leaves the trunk;
    -1 for a row that shares nothing. ends: ``[G]`` int64, the step whose clean estimate is the row's output; T for one of all steps.
    branch: ``[G]`` int64, numbers from 0; those of one number began at one state.
    """

    trained: Tensor
    random: Tensor
    trunk: Tensor
    leaves: Tensor
    ends: Tensor
    branch: Tensor

    @property
    def first(self) -> Tensor:
        """``[G]``: of each row the first one on its trunk."""
        which = self.trunk.unique(return_inverse=True)[1]
        rows = torch.arange(len(which))
        return torch.full((len(rows),), len(rows)).scatter_reduce(0, which, rows, "amin")[which]

    @property
    def passes(self) -> int:
        """Rows that the denoiser sees while the group is sampled, guidance not counted."""
        num_steps = self.trained.shape[1]
        trunks = len(self.trunk[self.leaves >= 0].unique())
        own = torch.minimum(self.ends + 1, torch.tensor(num_steps)) - (self.leaves + 1)
        return trunks * num_steps + int(own.sum())

    @staticmethod
    def of_groups(trees: Sequence[Tree], numbers: Sequence[int]) -> Tree:
        """Trees of several groups as one: their trunks and branches get numbers that no other group has. numbers: of the groups."""
        wide = [number * len(tree.trunk) for number, tree in zip(numbers, trees, strict=True)]
        joint = Tree(*(torch.cat(tables) for tables in zip(*trees, strict=True)))
        offsets = torch.tensor(wide).repeat_interleave(torch.tensor([len(tree.trunk) for tree in trees]))
        return joint._replace(trunk=joint.trunk + offsets, branch=joint.branch + offsets)


Several = Annotated[int, within(2, MANY)]
Branches = Callable[[Tensor, Tensor, int, torch.Generator], Tree]


def at_each_step(*, children: Several = 6) -> Branches:
    """A trunk without noise, and at each trained step so many rows that leave it: noise in that one step, and none before and after.

    What differs between rows of a branch is one draw, and so their rewards say what that step is worth. A group of G has
    ``G / (children * trained steps)`` trunks.

    children: rows of each branch.

    Paper: TempFlow-GRPO, https://arxiv.org/abs/2508.04324

    Examples:
        >>> steps = torch.tensor([True, True, False])
        >>> tree = at_each_step(children=2)(steps, steps, 4, torch.Generator())
        >>> tree.leaves.tolist(), tree.branch.tolist(), tree.passes  # 3 of the trunk, 2 of each of two rows, 1 of each of two
        ([0, 0, 1, 1], [0, 0, 1, 1], 9)
    """
    return lambda trained, random, size, rng: _stepwise("at_each_step", trained, torch.zeros_like(random), size, children, len(trained))


def candidates(*, children: Several = 4) -> Branches:
    """A random trunk, and at each trained step so many next latents; each row's output is the clean estimate at its own next latent.

    So a judge compares candidates of one step, for one more pass of the denoiser each. Of ``random`` the trunk takes all. A group of G has
    ``G / (children * trained steps)`` trunks. A reward that takes ``level=None`` is told the noise level of each row, (signal, noise), and
    one that takes ``noisy=None`` the latents that the estimates are made of; ``on_latents`` with a reward model on ``noisy_latents``
    judges these at their levels.

    children: rows of each branch.

    Paper: SPO, https://arxiv.org/abs/2406.04314; there the trajectory goes on from one of the candidates, drawn at random, which is a draw
    from the same distribution as the trunk's own next latent here.

    Examples:
        >>> tree = candidates(children=2)(torch.tensor([False, True, True]), torch.ones(3, dtype=torch.bool), 4, torch.Generator())
        >>> tree.leaves.tolist(), tree.ends.tolist(), tree.passes  # the last two leave at the last step, and are what they come to
        ([1, 1, 2, 2], [2, 2, 3, 3], 5)
    """
    return lambda trained, random, size, rng: _stepwise("candidates", trained, random | trained, size, children, 1)


def fork(*, children: Several = 3) -> Branches:
    """A trunk up to the first trained step, at which so many rows leave it; each is random from there on as the schedule has it.

    A group of G has ``G / children`` trunks.

    children: rows of each branch.

    Paper: B2-DiffuRL, https://arxiv.org/abs/2503.11240, with ``windows.growing_window``; there all steps take noise, so that
    ``schedule.random`` is ``windows.everything()``.

    Examples:
        >>> tree = fork(children=2)(torch.tensor([False, True, True]), torch.ones(3, dtype=torch.bool), 4, torch.Generator())
        >>> tree.trunk.tolist(), tree.leaves.tolist(), tree.passes
        ([0, 0, 1, 1], [1, 1, 1, 1], 10)
    """

    def tree(trained: Tensor, random: Tensor, size: int, rng: torch.Generator) -> Tree:
        steps = _steps("fork", trained)
        _fits("fork", size, children, f"{children} children of each trunk")
        trunk = torch.arange(size) // children
        wide = lambda cells: cells.expand(size, -1)  # noqa: E731
        leaves, ends = torch.full((size,), int(steps[0])), torch.full((size,), len(trained))
        return Tree(wide(trained), wide(random | trained), trunk, leaves, ends, trunk)

    return tree


def one_step(*, shared: bool = False) -> Branches:
    """One trained step for each group, drawn from the window; all others of its rows are the ODE's.

    Rows of a group are random at one step, so that their rewards compare draws and not places; groups of a rollout have different ones,
    and all steps are trained in time.

    shared: all rows leave one trunk at that step, and differ by its noise alone; else each has a first latent of its own.

    Paper: Flash-GRPO, https://arxiv.org/abs/2605.15980, whose code shares nothing.

    Examples:
        >>> steps = torch.tensor([True, True, True, False])
        >>> tree = one_step()(steps, steps, 3, torch.Generator().manual_seed(0))
        >>> tree.trained.sum(1).tolist(), len(tree.trained.unique(dim=0)), tree.passes
        ([1, 1, 1], 1, 12)
    """

    def tree(trained: Tensor, random: Tensor, size: int, rng: torch.Generator) -> Tree:
        steps = _steps("one_step", trained)
        step = steps[torch.randint(len(steps), (), generator=rng)]
        cells = (torch.arange(len(trained)) == step).expand(size, -1)
        rows, zeros = torch.arange(size), torch.zeros(size, dtype=torch.int64)
        trunk, leaves = (zeros, zeros + step) if shared else (rows, zeros - 1)
        return Tree(cells, cells, trunk, leaves, zeros + len(trained), zeros)

    return tree


def _stepwise(owner: str, trained: Tensor, trunk_random: Tensor, size: int, children: int, further: int) -> Tree:
    """So many rows that leave at each trained step and end ``further`` steps after it, random there, and before it as the trunk is."""
    steps, num_steps = _steps(owner, trained), len(trained)
    _fits(owner, size, children * len(steps), f"{children} children at each of {len(steps)} trained steps")
    trunks = size // (children * len(steps))
    leaves = steps.repeat_interleave(children).repeat(trunks)
    own = torch.arange(num_steps) == leaves[:, None]
    before = torch.arange(num_steps) < leaves[:, None]
    rows = torch.arange(size)
    return Tree(
        own,
        own | (before & trunk_random),
        rows // (children * len(steps)),
        leaves,
        (leaves + further).clamp(max=num_steps),
        rows // children,
    )


def _steps(owner: str, trained: Tensor) -> Tensor:
    steps = torch.nonzero(trained).flatten()
    if not len(steps):
        raise UserError(f"policy.schedule.window: none of {len(trained)} steps is trained, and branches.{owner} leaves trunks at those")
    return steps


def _fits(owner: str, size: int, unit: int, why: str) -> None:
    if size % unit:
        raise UserError(f"batch.group: got {size}, takes a multiple of {unit} for branches.{owner} ({why})")
