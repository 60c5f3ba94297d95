"""A model cut into shards (FSDP2, torch's ``fully_shard``): each process holds a part of a block's parameters, and gathers it to run it.

A gather takes all processes, and how often a process runs a block follows from its own rows: texts end at other lengths, batches of
other sizes are as many as they are. So a process asks before each gather (``Team.ask``), and whoever has nothing to run, or another block,
takes part with its shards (``Shards.help``): nobody has to run as often as the others do, and no policy knows of shards.

Gradients of a whole block stay with the process until the update's backward passes are done, and are then summed into shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from mmalign.distributed.team import Team
from mmalign.types import Policy, UserError


class Sets(Protocol):
    """What is cut: a module, its trained parameters by name as they are now, and named copies of them."""

    module: nn.Module
    sets: dict[str, dict[str, Tensor]]
    others: Mapping[str, Any]
    shards: Shards | None

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""

    @property
    def in_place(self) -> str:
        """The set whose values the parameters hold now."""

    def lent(self, name: str, keys: Sequence[str]) -> AbstractContextManager[None]:
        """The values of a set in some parameters, whatever is in place."""


class Placed(Protocol):
    """Where a model is to be, see ``training.settings.Devices``."""

    @property
    def place(self) -> str:
        """``replicate`` or ``fsdp2``."""


def sharded(policy: Policy, devices: Placed, team: Team) -> Shards | None:
    """Cuts a policy's model, where that is asked for; one that an earlier run has cut stays so. Errors: UserError in one process, and see
    ``Shards``."""
    refuse_alone(devices.place, team)
    sets: Any = policy.sets
    if sets.shards is None and devices.place == "fsdp2":
        sets.shards = Shards(sets, team)
    if sets.shards is not None:
        team.helper = sets.shards.help
    return sets.shards  # type: ignore[no-any-return]


def refuse_alone(place: str | None, team: Team) -> None:
    """Errors: UserError for shards in one process; asked before anything is loaded, too."""
    if place == "fsdp2" and team.size == 1:
        takes = "several processes: mmalign train CONFIG --processes N, or torchrun"
        raise UserError(f"devices.place: got fsdp2 in one process; takes {takes}; or replicate")


class Shards:
    """The blocks of a policy's model, and of those that its references are, cut over the processes of a team.

    leaves: trained parameter -> what autograd knows of it: the whole one, which is there while its block is gathered.
    Errors: UserError for a model that repeats no block, or whose blocks cannot be cut.
    """

    def __init__(self, sets: Sets, team: Team):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.sets, self.team, self.blocks = sets, team, list[Any](_all_blocks(sets))
        by_identity = {id(p): name for name, p in sets.trained.items()}
        self.names = [[by_identity[id(p)] for p in block.parameters() if id(p) in by_identity] for block in self.blocks]
        self.mesh = init_device_mesh(next(self.blocks[0].parameters()).device.type, (team.size,))
        for block in self.blocks:
            try:
                fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
            except (RuntimeError, ValueError, AssertionError) as error:
                why = " ".join(str(error).split())[:200]
                raise UserError(f"devices.place: {type(block).__name__} cannot be cut ({why}); takes replicate") from error
            block.set_requires_gradient_sync(False)
        for name, table in sets.sets.items():
            sets.sets[name] = {key: like(value, sets.trained[key]) for key, value in table.items()}
        self.leaves: dict[str, nn.Parameter] = {}
        for number, block in enumerate(self.blocks):
            cut = {name: p for name, p in sets.trained.items() if name in self.names[number]}
            team.heard(block.unshard)
            owners = {name: sets.module.get_submodule(name.rpartition(".")[0]) for name in cut}
            self.leaves |= {name: getattr(owner, name.rpartition(".")[2]) for name, owner in owners.items()}
            block.reshard()
            block.register_forward_pre_hook(torch.compiler.disable(partial(self._before, number)), prepend=True)
            block.register_forward_hook(torch.compiler.disable(partial(self._after_forward, number)), prepend=True)

    def _before(self, number: int, *_: Any) -> None:
        """Before a block is gathered, forwards or backwards: the others take part."""
        if is_cut(next(self.blocks[number].parameters())):
            self.team.ask(number, self._names_of_sets().index(self.sets.in_place))

    def _after_forward(self, number: int, block: nn.Module, inputs: Any, output: Any) -> None:
        from torch.utils._pytree import tree_leaves

        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda gradient: self._before(number))  # stands before the hook of fully_shard, which gathers

    def help(self, number: int, which: int) -> None:
        """Takes part in the gather of a block for another process, with the values of the set that is in place there."""
        block = self.blocks[number]
        if not is_cut(next(block.parameters())):
            raise UserError(
                f"devices.place: another process gathers {type(block).__name__} {number} while this one holds it; takes replicate"
            )
        with torch.no_grad(), self.sets.lent(self._names_of_sets()[which], self.names[number]):
            block.unshard()
            block.reshard()

    def _names_of_sets(self) -> list[str]:
        return ["current", *sorted(self.sets.sets)]

    def forget(self) -> None:
        """Drops gradients, and what a pass that an exception ended has gathered."""
        for block in self.blocks:
            block.reset_iter_state()
            block.reshard()
        for leaf in self.leaves.values():
            leaf.grad = None

    def add_gradients(self) -> None:
        """Sums what the processes hold of the gradients of whole blocks into shards; None stays None where no process has one."""
        from torch.distributed.tensor import DTensor, Partial

        held = self.team.tell([leaf.grad is not None for leaf in self.leaves.values()])
        trained = self.sets.trained
        for (name, leaf), *flags in zip(self.leaves.items(), *held, strict=True):
            if not any(flags):
                continue
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            p: Any = trained[name]
            leaf.grad = None
            p.grad = DTensor.from_local(gradient, self.mesh, [Partial()], run_check=False).redistribute(placements=p.placements)


def _all_blocks(sets: Sets) -> list[nn.Module]:
    """Of the policy's own model first, and of each other one that its references are."""
    own, seen = blocks_of(sets.module), set[int]()
    if not own:
        raise UserError(f"devices.place: got fsdp2, and {type(sets.module).__name__} repeats no block that could be cut; takes replicate")
    modules = [part for other in sets.others.values() for part in other.parts.values() if isinstance(part, nn.Module)]
    blocks = [*own, *(block for module in modules for block in blocks_of(module))]
    return [block for block in blocks if id(block) not in seen and not seen.add(id(block))]  # type: ignore[func-returns-value]


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """What a model repeats: the entries of its outermost lists of modules, where they hold parameters."""
    blocks: list[nn.Module] = []

    def walk(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(child, nn.ModuleList):
                blocks.extend(entry for entry in child if any(True for _ in entry.parameters()))
            else:
                walk(child)

    walk(module)
    return blocks


def leaves(policy: Policy) -> list[Tensor]:
    """The trained parameters as autograd knows them: whole ones where a block is in shards."""
    sets: Any = policy.sets
    known = {} if sets.shards is None else sets.shards.leaves
    return [known.get(name, parameter) for name, parameter in policy.parameters().items()]


# Tensors


def in_processes() -> bool:
    """Whether this is one of several processes, whose parameters may be in shards."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_cut(value: Tensor) -> bool:
    """Whether this is a part of a tensor, of which other processes hold the others."""
    if not in_processes():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def like(value: Tensor, p: Tensor) -> Tensor:
    """A whole tensor as the shards of a parameter that ``fully_shard`` has cut; others as they are."""
    if not is_cut(p) or is_cut(value) or value.shape != p.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    cut: Any = p
    return distribute_tensor(value.to(p.device), cut.device_mesh, cut.placements, src_data_rank=None)  # all processes hold the same


class Rows(NamedTuple):
    """What a process holds of a tensor in shards: its rows from ``first`` on."""

    first: int
    value: Tensor


def own_rows(value: Tensor) -> Rows | None:
    """This process's rows of a tensor that ``fully_shard`` has cut, or None for others. They are those of ``torch.chunk``."""
    if not is_cut(value):
        return None
    cut: Any = value
    each = -(-value.shape[0] // cut.device_mesh.size())
    return Rows(min(each * cut.device_mesh.get_local_rank(), value.shape[0]), cut.to_local().detach())


def of_rows(rows: Tensor, p: Tensor) -> Tensor:
    """A tensor in shards, as ``fully_shard`` has cut ``p``, of the rows that each process has of it."""
    from torch.distributed.tensor import DTensor

    cut: Any = p
    rows = rows.to(p.device)
    return DTensor.from_local(rows, cut.device_mesh, cut.placements, run_check=False, shape=p.shape, stride=p.stride())


def whole(value: Tensor) -> Tensor:
    """Shards of ``fully_shard`` put together; others as they are. Takes all processes."""
    cut: Any = value
    return cut.full_tensor() if is_cut(value) else value


def reshard(module: nn.Module) -> None:
    """Drops gathered parameters of ``fully_shard``, which keeps those of its outermost module after a forward pass."""
    if not in_processes():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
