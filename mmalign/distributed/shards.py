"""A model cut into shards (FSDP2, torch's ``fully_shard``): each process holds a part of a block's parameters, and gathers it to run it.

A gather takes all processes, and how often a process runs a block follows from its own rows: texts end at other lengths, batches of
other sizes are as many as they are. So a process asks before each gather (``Team.ask``), and whoever has nothing to run, or another block,
takes part with its shards (``Shards.help``): nobody has to run as often as the others do, and no policy knows of shards. Where all run
the same, and are to run the same next, they begin to gather what is next before this block is computed (``Shards._before``).

Gradients of a whole block stay with the process until the update's backward passes are done, and are then summed into shards. Under
mixed precision each pass leaves its own in the low type; they are added up in float32, here (``_add_up``): what ``fully_shard`` itself
would keep of them between passes (``unsharded_accumulated_grad``) stands nowhere that one may look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mmalign.distributed.meshes import in_processes, is_cut, like, mesh_of, of_rows, whole
from mmalign.distributed.messages import Begun, fingerprint, spread
from mmalign.distributed.team import Team
from mmalign.types import Policy, UserError

MIXED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What parameters may be kept in whose blocks run in another type."""


class Sets(Protocol):
    """What is cut: a module, its trained parameters by name as they are now, and named copies of them."""

    module: nn.Module
    sets: dict[str, dict[str, Tensor]]
    shards: Shards | None

    @property
    def others(self) -> Mapping[str, Any]:
        """Other models that names stand for."""

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

    @property
    def gathered(self) -> str:
        """``block`` or ``rollout``: how long a gathered block stays."""

    @property
    def mixed_precision(self) -> str | None:
        """The type that blocks are gathered and run in, by name."""

    @property
    def offload(self) -> bool:
        """Whether shards are on the CPU."""


class Coming(NamedTuple):
    """A run whose policies are to be cut."""

    devices: Placed
    team: Team


_COMING: ContextVar[Coming | None] = ContextVar("coming", default=None)


@contextmanager
def cutting(devices: Placed, team: Team) -> Iterator[None]:
    """Policies that are made inside of the block are in shards from the start, where ``devices`` asks for such.

    A library loads weights on the CPU as parts of mapped files, of which nothing is read; a block is cut before anything runs or copies
    it, and a process reads its own rows. Errors: UserError in one process.
    """
    refuse_alone(devices.place, team)
    token = _COMING.set(Coming(devices, team) if devices.place == "fsdp2" else None)
    try:
        yield
    finally:
        _COMING.reset(token)


def awaited() -> bool:
    """Whether a policy that is made now is to be cut before it goes to its device."""
    return _COMING.get() is not None


def cut_early(sets: Sets, device: torch.device) -> None:
    """Cuts what is awaited, onto its device. Errors: see ``Shards``."""
    if (coming := _COMING.get()) is not None:
        sets.shards = Shards(sets, coming.devices, coming.team, device=device)


def sharded(policy: Policy, devices: Placed, team: Team) -> Shards | None:
    """Cuts a policy's model, and those of its references, where that is asked for; what is cut stays so. Errors: UserError in one process,
    for shards of another kind than an earlier run's, and see ``Shards``."""
    refuse_alone(devices.place, team)
    sets: Any = policy.sets
    if sets.shards is None and devices.place == "fsdp2":
        sets.shards = Shards(sets, devices, team)
    if sets.shards is None:
        return None
    if devices.place == "fsdp2" and devices != sets.shards.devices:
        raise UserError(f"devices: got {devices}, and an earlier run has cut this policy by {sets.shards.devices}; takes the same")
    sets.shards.cut(part for other in sets.others.values() for part in other.parts.values() if isinstance(part, nn.Module))
    return sets.shards  # type: ignore[no-any-return]


@contextmanager
def held(policy: Policy) -> Iterator[None]:
    """While a rollout is drawn: what is gathered for it stays, where the run asks for that; also of other models that draw."""
    sets: Any = policy.sets
    with ExitStack() as stack:
        for cut in (sets.shards, *(other.shards for other in sets.others.values())):
            if cut is not None and cut.devices.gathered == "rollout":
                stack.enter_context(cut.held())
        yield


def refuse_alone(place: str | None, team: Team) -> None:
    """Errors: UserError for shards in one process; asked before anything is loaded, too."""
    if place == "fsdp2" and team.size == 1:
        takes = "several processes: mmalign train CONFIG --processes N, or torchrun"
        raise UserError(f"devices.place: got fsdp2 in one process; takes {takes}; or replicate")


class Shards:
    """The blocks of a policy's model, and of those that its references are, cut over the processes of a team.

    leaves: trained parameter -> what autograd knows of it: the whole one, which is there while its block is gathered. sums: of what is
    added up in float32, the gradients of whole blocks so far. follows: the block that runs after one, forwards (1) and backwards (-1), as
    far as the model's lists say it and no pass has done otherwise. Errors: UserError for a model that repeats no block, or whose blocks
    cannot be cut so.
    """

    def __init__(self, sets: Sets, devices: Placed, team: Team, *, device: torch.device | None = None):
        self.sets, self.team, self.devices = sets, team, devices
        self.blocks, self.numbers, self.names = list[Any](), list[int](), list[list[str]]()
        self.leaves, self.sums = dict[str, nn.Parameter](), dict[str, Tensor]()
        self.follows, self._expected, self._holds = dict[tuple[int, int], int](), (-1, 0), False
        kind = (device or next(sets.module.parameters()).device).type
        if devices.offload and kind == "cpu":
            raise UserError("devices.offload: got true, and the model is on the CPU already; takes false")
        self.mesh = mesh_of(kind, (team.size,))
        self.cut([sets.module])
        if not self.blocks:
            raise UserError(
                f"devices.place: got fsdp2, and {type(sets.module).__name__} repeats no block that could be cut; takes replicate"
            )
        for name, table in sets.sets.items():
            sets.sets[name] = {key: like(value, sets.trained[key]) for key, value in table.items()}

    def cut(self, modules: Iterable[nn.Module]) -> None:
        """Cuts the blocks of modules that are not cut yet, one after the other: no more than one of them is whole here at a time."""
        from torch.distributed.fsdp import FSDPModule

        names = {id(p): name for name, p in self.sets.trained.items()}
        for row in [row for module in modules for row in lists_of(module)]:
            for number, block in enumerate(block for block in row if not isinstance(block, FSDPModule)):
                self._cut(block, [names[id(p)] for p in block.parameters() if id(p) in names])
                if number:
                    here = len(self.blocks) - 1
                    self.follows |= {(here - 1, 1): here, (here, -1): here - 1}

    def _cut(self, block: nn.Module, names: list[str]) -> None:
        owners = {name: self.sets.module.get_submodule(name.rpartition(".")[0]) for name in names}
        now = lambda: {name: getattr(owner, name.rpartition(".")[2]) for name, owner in owners.items()}  # noqa: E731
        self._agree(list(now().values()))
        cut: Any = _in_shards(block, self.mesh, self.runs_in, offload=self.devices.offload)
        place = len(self.blocks)
        self.blocks.append(cut)
        self.names.append(names)
        self.numbers.append(self.team.enlist(self.help))
        self.team.heard(cut.unshard)
        leaves = now()
        cut.reshard()
        self.leaves |= leaves
        for name, leaf in leaves.items() if self.runs_in is not None else ():
            leaf.register_post_accumulate_grad_hook(partial(self._add_up, name))
        block.register_forward_pre_hook(torch.compiler.disable(partial(self._before, place, 1)), prepend=True)
        block.register_forward_hook(torch.compiler.disable(partial(self._after_forward, place)), prepend=True)

    @property
    def runs_in(self) -> torch.dtype | None:
        """The type that blocks run in, where it is another than that of their parameters."""
        name = self.devices.mixed_precision
        return None if name is None else getattr(torch, name)  # type: ignore[no-any-return]

    def _agree(self, values: Sequence[Tensor]) -> None:
        """Makes what is trained what it is in the main process; only what differs there, by some numbers of each, is sent."""
        processes = self.team.tell([fingerprint(value) for value in values])
        self.team.copy([value for value, *each in zip(values, *processes, strict=True) if len(set(each)) > 1])

    def _add_up(self, name: str, leaf: Tensor) -> None:
        """After each backward pass: its gradient, in the type that blocks run in, goes into the sum, in float32 or wider."""
        gradient: Any = leaf.grad
        leaf.grad = None
        if name in self.sums:
            self.sums[name] += gradient
        else:
            self.sums[name] = gradient.to(torch.promote_types(gradient.dtype, torch.float32))

    def _before(self, place: int, step: int, *_: Any) -> None:
        """Before a block is gathered, forwards (step 1) or backwards (-1): the others take part, and what follows may begin to be."""
        block = self.blocks[place]
        if not is_cut(next(block.parameters())):
            return
        if self._expected in self.follows and self.follows[self._expected] != place:
            del self.follows[self._expected]  # this model runs its blocks in another order
        then, values = self.follows.get((place, step), -1), self._names_of_sets().index(self.sets.in_place)
        if then >= 0 and not is_cut(next(self.blocks[then].parameters())):
            then = -1
        ahead = self.team.ask(self.numbers[place], values, then if then < 0 else self.numbers[then])
        block.unshard()
        self._expected = (place, step)
        if ahead:
            handle = self.blocks[then].unshard(async_op=True)
            self.team.begun = Begun(self.numbers[then], values, lambda: (handle.wait(), self.blocks[then].reshard()))

    def _after_forward(self, place: int, block: nn.Module, inputs: Any, output: Any) -> None:
        from torch.utils._pytree import tree_leaves

        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.requires_grad:
                value.register_hook(lambda gradient: self._before(place, -1))  # stands before the hook of fully_shard, which gathers

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is gathered inside of the block stays there, for as long as the parameters hold the same values."""
        self._holds = True
        try:
            for block in self.blocks:
                block.set_reshard_after_forward(False)
            yield
        finally:
            self._holds = False
            for block in self.blocks:
                block.set_reshard_after_forward(True)
                block.reshard()

    def help(self, number: int, which: int) -> None:
        """Takes part in the gather of a block for another process, with the values of the set that is in place there."""
        place = self.numbers.index(number)
        block = self.blocks[place]
        if self._holds:
            block.reshard()  # and gathers it again when it runs it
        if not is_cut(next(block.parameters())):
            raise UserError(
                f"devices.place: another process gathers {type(block).__name__} {number} while this one holds it; takes replicate"
            )
        with torch.no_grad(), self.sets.lent(self._names_of_sets()[which], self.names[place]):
            block.unshard()
            block.reshard()

    def _names_of_sets(self) -> list[str]:
        return ["current", *sorted(self.sets.sets)]

    def forget(self) -> None:
        """Drops gradients, and what a pass that an exception ended has gathered."""
        self.team.let_go()
        self._expected = (-1, 0)
        for block in self.blocks:
            block.reset_iter_state()
            block.reshard()
        for leaf in self.leaves.values():
            leaf.grad = None
        self.sums.clear()

    def add_gradients(self) -> None:
        """Sums what the processes hold of the gradients of whole blocks into shards; None stays None where no process has one."""
        from torch.distributed.tensor import DTensor, Partial

        gradients = {name: self.sums.pop(name, leaf.grad) for name, leaf in self.leaves.items()}
        held = self.team.tell([gradient is not None for gradient in gradients.values()])
        trained = self.sets.trained
        for (name, gradient), *flags in zip(gradients.items(), *held, strict=True):
            if not any(flags):
                continue
            leaf, p = self.leaves[name], cast(Any, trained[name])
            if gradient is None:
                summed_in = leaf.dtype if self.runs_in is None else torch.promote_types(leaf.dtype, torch.float32)
                gradient = torch.zeros_like(leaf, dtype=summed_in)
            leaf.grad = gradients[name] = None
            summed: Any = DTensor.from_local(gradient, self.mesh, [Partial()], run_check=False).redistribute(placements=p.placements)
            p.grad = of_rows(summed.to_local().to(p.dtype), p)


def _in_shards(block: nn.Module, mesh: Any, runs_in: torch.dtype | None, *, offload: bool) -> nn.Module:
    """The block, cut. runs_in: the type that it is gathered in. Errors: UserError for one that cannot be cut so."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    mixed = MixedPrecisionPolicy()
    if runs_in is not None:
        if odd := sorted(str(p.dtype) for p in block.parameters() if p.dtype not in MIXED):
            takes = "takes it without policy.memory.storage"
            raise UserError(f"devices.mixed_precision: {type(block).__name__} keeps weights in {odd[0].removeprefix('torch.')}; {takes}")
        own = next(block.parameters()).dtype
        mixed = MixedPrecisionPolicy(param_dtype=runs_in, output_dtype=own)
    where = CPUOffloadPolicy() if offload else OffloadPolicy()
    try:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, mp_policy=mixed, offload_policy=where)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"devices.place: {type(block).__name__} cannot be cut ({why}); takes replicate") from error
    module: Any = block
    module.set_requires_gradient_sync(False)
    return block


def lists_of(module: nn.Module) -> list[list[nn.Module]]:
    """What a model repeats: its outermost lists of modules, of each the entries that hold parameters."""
    lists: list[list[nn.Module]] = []

    def walk(part: nn.Module) -> None:
        for child in part.children():
            if isinstance(child, nn.ModuleList):
                lists.append([entry for entry in child if any(True for _ in entry.parameters())])
            else:
                walk(child)

    walk(module)
    return lists


def leaves(policy: Policy) -> list[Tensor]:
    """The trained parameters as autograd knows them: whole ones where a block is in shards."""
    sets: Any = policy.sets
    known = {} if sets.shards is None else sets.shards.leaves
    return [known.get(name, parameter) for name, parameter in policy.parameters().items()]


# Tensors


def digest(modules: Mapping[str, nn.Module]) -> str:
    """What weights are told apart by: the names, shapes and types of all tensors, and some numbers of each, spread over it."""
    hasher = hashlib.blake2b(digest_size=8)
    for part, module in sorted(modules.items()):
        for name, value in sorted(module.state_dict().items()):
            hasher.update(f"{part}.{name} {value.dtype} {list(value.shape)}".encode())
            value = whole(value.detach())
            numbers = value.flatten().view(torch.uint8).view(-1, value.element_size())[spread(value.numel()).to(value.device)]
            hasher.update(numbers.cpu().numpy().tobytes())
    return hasher.hexdigest()


def reshard(module: nn.Module) -> None:
    """Drops gathered parameters of ``fully_shard``, which keeps those of its outermost module after a forward pass."""
    if not in_processes():
        return
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
