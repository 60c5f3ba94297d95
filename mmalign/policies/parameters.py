"""Named parameter sets: one module, several sets of values (``ref``, ``previous``, ``ema``, an opponent), or another model's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.distributed.meshes import held_of, like, whole
from mmalign.distributed.shards import Shards, cut_early, reshard
from mmalign.policies.adapters import ADAPTER, add_lora, fitted, pairs_of, seated, stacked, switched
from mmalign.policies.settings import Lora
from mmalign.runs import weights
from mmalign.runs.weights import existing
from mmalign.types import UserError

__all__ = ["ParameterSets"]

WIDEST = 8  # times the trained rank: a mixture of LoRA sets with more is factored anew


class Other(NamedTuple):
    """Another model that a name stands for. parts: the attributes of the policy that are its own model's, as they are of that one.

    digest: what its weights are told apart by. modules: what of it may wait elsewhere between its uses. shards: where it is cut by itself.
    """

    parts: Mapping[str, Any]
    digest: str
    modules: tuple[nn.Module, ...] = ()
    shards: Shards | None = None


class ParameterSets:
    """The trained parameters of a module, and named copies that can take their place.

    With LoRA the trained parameters are the adapter's and ``ref`` is the module with its adapter switched off: it costs
    nothing. Without, ``ref`` is a copy made here. Other sets are copies of what is trained, averages of it, and mixtures of sets;
    ``tables()`` and ``load()`` are what a checkpoint keeps. A mixture of LoRA sets is one of their effective weights, and its A and B
    have the rank that this takes, while all others have the trained one.

    A set's values are copied into the parameters themselves (``replaced``), so that whoever holds these, an optimiser or ``fully_shard``,
    sees what is in use. Parameters are looked up at every use, as ``fully_shard`` puts others in their place.

    home: the device that copies are kept on, the parameters' own by default. What is trained waits there while a set is in use: with
    another home one set's worth of memory on the device instead of one for each, for two copies over the bus. Other models that names
    stand for wait there too.

    train: in place of ``lora``, what makes the module ready (some of its parameters trained, some under LoRA, some frozen), and tells
    whether all that is trained is LoRA. Where some is not, ``ref`` is a copy of what is trained.

    start: a run, or whole weights on disk, that what is trained starts as without ``lora``; with it, ``lora.from_`` is that. ``ref``
    is then a copy of the start, not the base.

    cut_to: the device that its blocks go to in shards, where a run is coming that wants such (``shards.cutting``): they are cut before
    anything is copied. None: it is cut later.

    A name may also stand for another model (``lend``), which the policy runs while it is in use. It is not mixed, kept or checkpointed.
    """

    def __init__(
        self, module: nn.Module, *, lora: Lora | None = None, home: torch.device | None = None,
        train: Callable[[nn.Module], bool] | None = None, start: str | None = None, cut_to: torch.device | None = None,
    ):  # fmt: skip
        if lora is not None and start is not None:
            raise UserError("policy.start: given beside lora; takes lora: {from: PLACE}, or no lora")
        self.module, self.lora, self.home = module, lora is not None, home
        module.requires_grad_(False)
        if train is not None:
            self.lora = train(module)
        elif lora is not None:
            add_lora(module, lora)
        else:
            module.requires_grad_(True)
        trained = [name.rpartition(".") for name, p in module.named_parameters() if p.requires_grad]
        self._owners = {f"{path}{dot}{leaf}": (module.get_submodule(path), leaf) for path, dot, leaf in trained}
        self._pairs = [pair for pair in pairs_of(module) if pair.down in self._owners] if lora or train else []
        self.sets: dict[str, dict[str, Tensor]] = {}
        self.others: dict[str, Other] = {}
        self.workplaces: dict[str, torch.device] = {}  # of other models that wait at home, where they are while they are in use
        self._in_use: Counter[str] = Counter()
        self._policy: Any = None
        self._own: dict[str, Any] | None = None  # the policy's parts while those of another model are in their place
        self._replaced: list[tuple[str, dict[str, Tensor]]] = []  # sets that are in place, and what they stand in for
        self.shards: Shards | None = None
        self._adopted: set[str] = set()
        if cut_to is not None:
            cut_early(self, cut_to)
        if start is not None:
            self.load({"trained": self._matched(weights.read(existing(start, "policy.start"), "policy.start"), "policy.start")})
        if not self.lora or any(pair.layer.lora_B[ADAPTER].weight.any() for pair in self._pairs):
            self.keep("ref")

    @property
    def scales(self) -> dict[str, float]:
        """alpha / rank of every LoRA layer, by its name in the module."""
        return {pair.down.removesuffix(f".lora_A.{ADAPTER}.weight"): float(pair.layer.scaling[ADAPTER]) for pair in self._pairs}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, as they are now: in shards where ``fully_shard`` has cut them."""
        if self.shards is not None:
            self.shards.team.let_go()  # of what may be written to now
        reshard(self.module)
        return {name: getattr(owner, leaf) for name, (owner, leaf) in self._owners.items()}

    @property
    def runs_in(self) -> torch.dtype:
        """The type that blocks are computed in."""
        low = None if self.shards is None else self.shards.runs_in
        return next(self.module.parameters()).dtype if low is None else low

    def add(self, beside: Mapping[str, nn.Module]) -> None:
        """Modules that are trained beside this one: ``NAME.weight``, ... among the trained parameters, and as they are now in all sets."""
        for name, layer in beside.items():
            for own, p in layer.named_parameters():
                path, _, leaf = own.rpartition(".")
                self._owners[f"{name}.{own}"] = (layer.get_submodule(path), leaf)
                for table in self.sets.values():
                    table[f"{name}.{own}"] = p.detach().to(self.home or p.device, copy=True)

    def freeze(self, names: Collection[str]) -> None:
        """Takes parameters on which nothing depends that is trained out of what is trained, and out of all sets."""
        for name, p in self.trained.items():
            p.requires_grad_(name not in names)
        self._owners = {name: owner for name, owner in self._owners.items() if name not in names}
        self._pairs = [pair for pair in self._pairs if pair.down in self._owners]
        self.sets = {name: {key: table[key] for key in self._owners} for name, table in self.sets.items()}

    def lend(self, name: str, policy: Any, other: Other) -> None:
        """Makes a name stand for another model. policy: whose attributes are swapped. Memory of a set of that name is given back."""
        self.others[name], self._policy = other, policy
        self.sets.pop(name, None)
        if self.home is not None and other.modules:
            self.workplaces.setdefault(name, next(other.modules[0].parameters()).device)
            for part in other.modules:
                part.to(self.home)

    @property
    def foreign(self) -> dict[str, str]:
        """What did not start as this policy: other models -> their digest, sets whose values were read from disk -> an empty string."""
        return {**dict.fromkeys(sorted(self._adopted), ""), **{name: other.digest for name, other in self.others.items()}}

    def keep(self, name: str) -> None:
        """Makes the named set a copy of the current values."""
        self.sets[name] = {key: p.detach().to(self.home or p.device, copy=True) for key, p in self.trained.items()}

    @torch.no_grad()
    def follow(self, name: str, *, decay: float) -> None:
        """Exponential moving average: ``set <- decay * set + (1 - decay) * current``, in float32 at least.

        Of every parameter by itself: of LoRA that of A and that of B, as in diffusers' ``EMAModel``; ``mix`` is of their products.
        """
        if name not in self.sets:
            self.keep(name)
            self.sets[name] = {key: mean.to(torch.promote_types(mean.dtype, torch.float32)) for key, mean in self.sets[name].items()}
        trained = self.trained
        for key, mean in self.sets[name].items():
            mean.lerp_(trained[key].detach().to(mean), 1 - decay)

    @torch.no_grad()
    def mix(self, name: str, shares: Mapping[str, float]) -> float:
        """Makes a set, or what is trained (``current``), the mixture ``sum_k share_k set_k``; of LoRA, of the effective weights B A.

        The rank of a set grows as it has to. What is trained has a rank of its own and becomes the nearest that this can hold; returned
        is how far that is off in the layer where it is furthest, over the size of the mixture; 0 is exact. Shares may be below 0.
        Errors: UserError for a set that is not there.
        """
        trained, parts = self.trained, [(share, self._table(part)) for part, share in shares.items()]
        paired = {key for pair in self._pairs for key in (pair.down, pair.up)}
        mixed: dict[str, Any] = {
            key: sum(share * like(table[key].to(p.device), p) for share, table in parts) for key, p in trained.items() if key not in paired
        }
        furthest = 0.0
        for _, down, up, _ in self._pairs:
            own = whole(trained[down].detach())
            several = [(share, whole(table[down]).to(own.device), whole(table[up]).to(own.device)) for share, table in parts]
            copied = len(several) == 1 and several[0][0] == 1.0
            a, b = several[0][1:] if copied else stacked(several, most=WIDEST * len(own))
            if name == "current" and a.shape != own.shape:
                a, b, lost = fitted(a, b, own)
                furthest = max(furthest, lost)
            mixed[down], mixed[up] = a, b
        self.load({"trained" if name == "current" else name: {key: mixed[key] for key in trained}})
        return furthest

    def _table(self, name: str) -> dict[str, Tensor]:
        """A set's values; of an adapter that is off, pairs of rank 0."""
        trained = {key: p.detach() for key, p in self.trained.items()}
        if name in self.others:
            raise UserError(f"parameter set: {name} is another model, which cannot be mixed with this one's")
        if name in self.sets or name in ("current", "trained"):
            return self.sets.get(name, trained)
        if name != "ref":
            raise UserError(f"parameter set: got {name!r}, this policy has {', '.join(sorted({'current', 'ref', *self.sets}))}")
        for _, down, up, _ in self._pairs:
            trained[down], trained[up] = whole(trained[down])[:0], whole(trained[up])[:, :0]
        return trained

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """The named set in place of the values that are there; they come back when the block ends, bit for bit, also after an exception.

        ``current`` is what is in place. Blocks nest, also that of a set inside of another model's. A graph of autograd that was recorded
        before the block is whole after it, and one that is recorded inside has to be used inside: torch raises where a backward pass
        meets other values than it was recorded with.
        """
        if name == "current":
            yield
        elif name in self.others:
            with self._at_work(name), self._in_place(self.others[name].parts):
                yield
        elif name == "ref" and self.lora and "ref" not in self.sets:
            with self._in_place(self._own), switched(self.module, on=False):
                yield
        elif name in self.sets:
            table, trained = self.sets[name], self.trained
            fits = {key for key, value in table.items() if value.shape == trained[key].shape}
            there = {key: table[key].to(trained[key].device) for pair in self._pairs for key in (pair.down, pair.up) if key not in fits}
            others = {pair: (there[pair.down], there[pair.up]) if pair.down in there else None for pair in self._pairs}
            with ExitStack() as stack:
                stack.enter_context(self._in_place(self._own))
                if others:
                    stack.enter_context(switched(self.module, on=True))  # a block of "ref", or of a mixture, may be around this one
                    stack.enter_context(seated(others))
                before = stack.enter_context(
                    replaced(self.module, trained, {key: table[key] for key in trained if key in fits}, home=self.home)
                )
                self._replaced.append((name, before))
                stack.callback(self._replaced.pop)
                yield
        else:
            names = sorted({"current", "ref", *self.sets, *self.others})
            raise UserError(f"parameter set: got {name!r}, this policy has {', '.join(names)}")

    @contextmanager
    def _at_work(self, name: str) -> Iterator[None]:
        """Another model where it works, while some block of it lasts; then it goes home."""
        parts = self.others[name].modules if name in self.workplaces else ()
        self._in_use[name] += 1
        try:
            for part in parts if self._in_use[name] == 1 else ():
                part.to(self.workplaces[name])
            yield
        finally:
            self._in_use[name] -= 1
            for part in () if self._in_use[name] else parts:
                part.to(self.home)

    @property
    def in_place(self) -> str:
        """The set whose values the trained parameters hold now: ``current`` outside of all blocks of ``using``."""
        return self._replaced[-1][0] if self._replaced else "current"

    @contextmanager
    def lent(self, name: str, keys: Sequence[str]) -> Iterator[None]:
        """While the block lasts, some parameters hold the values of a set, whatever is in place; ``current``: the trained ones."""
        if name == self.in_place:
            yield
            return
        there = {key: getattr(owner, leaf) for key, (owner, leaf) in self._owners.items() if key in keys}
        own = {key: value for _, before in reversed(self._replaced) for key, value in before.items()}
        table = own if name == "current" else self.sets[name]
        with replaced(None, there, {key: table[key] for key, p in there.items() if key in table and table[key].shape == p.shape}):
            yield

    @contextmanager
    def _in_place(self, parts: Mapping[str, Any] | None) -> Iterator[None]:
        """The policy with these parts while the block lasts; None: with those that it has."""
        if parts is None:
            yield
            return
        before, own = {name: getattr(self._policy, name) for name in parts}, self._own
        self._own = None if parts is own else own or before
        try:
            for name, part in parts.items():
                setattr(self._policy, name, part)
            yield
        finally:
            for name, part in before.items():
                setattr(self._policy, name, part)
            self._own = own

    def tables(self) -> dict[str, dict[str, Tensor]]:
        """``trained`` and every named copy, as flat tensors by name."""
        return {"trained": {key: p.detach() for key, p in self.trained.items()}, **self.sets}

    @torch.no_grad()
    def load(self, tables: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Puts back what ``tables`` gave, bit for bit. Errors: UserError where names or shapes differ."""
        trained = self.trained
        for name, table in tables.items():
            if odd := sorted(table.keys() ^ trained.keys())[:3]:
                raise UserError(f"parameter set {name!r}: got other parameters than this policy trains, such as {', '.join(odd)}")
            ranks = {key: len(table[pair.down]) for pair in self._pairs for key in (pair.down, pair.up)} if name != "trained" else {}
            for key, value in table.items():
                shape = _of_rank(trained[key], ranks.get(key), down="lora_A" in key)
                if list(value.shape) != shape:
                    raise UserError(f"parameter {key}: got shape {list(value.shape)}, takes {shape}")
            if name == "trained":
                for key, value in table.items():
                    trained[key].copy_(like(value, trained[key]))
            else:
                self.sets[name] = {key: value.to(self.home or trained[key].device, copy=True) for key, value in table.items()}

    def adopt(self, name: str, *stored: str | weights.Stored, shares: Sequence[float] = (1.0,)) -> None:
        """Makes the named set from weights as files hold them: with a library's prefix, and LoRA of any rank, without its adapter's name.

        Heads beside the module that are not stored keep their current values. Of several, sets by their names among them, it becomes
        ``sum_k share_k stored_k``, see ``mix``. Errors: UserError for a missing parameter, another shape, and LoRA in layers without.
        """
        mixed = dict[str, float]()
        for number, (share, part) in enumerate(zip(shares, stored, strict=True)):
            label = part if isinstance(part, str) else f"{name}.soup.{number}"
            if not isinstance(part, str):
                self.load({label: self._matched(part, f"references.{label if len(stored) > 1 else name}")})
            mixed[label] = mixed.get(label, 0.0) + share
        self.mix(name, mixed)
        self.sets = {own: table for own, table in self.sets.items() if not own.startswith(f"{name}.soup.")}
        self._adopted.add(name)

    def _matched(self, stored: weights.Stored, key: str) -> dict[str, Tensor]:
        """Stored values by the names of what is trained, B at the scale of its layer here."""
        plain, scales, trained = weights.plain(stored.tensors), weights.plain(stored.scales), self.trained
        inside, own, matched = {id(p) for p in self.module.parameters()}, self.scales, dict[str, Tensor]()
        if self.lora and not scales:
            raise UserError(f"{key}: got weights with no LoRA, and this policy trains one; takes those of the same model, trained alike")
        if odd := sorted(layer for layer in stored.scales if not weights.plain({layer: 1}).keys() & own.keys()):
            raise UserError(f"{key}: got LoRA in {len(odd)} layers with none here, such as {odd[0]}; takes that of this model's layers")
        own_names = {ending for full in self.module.state_dict() for ending in (full, full.replace(".base_layer.", "."))} | trained.keys()
        tops = {name for name, _ in self.module.named_children()}
        strange = [full for full in stored.tensors if not scales and not weights.plain({full: 1}).keys() & own_names]
        if left := sorted(full for full in strange if any(name.partition(".")[0] in tops for name in weights.plain({full: 1}))):
            raise UserError(
                f"{key}: got {len(left)} tensors that this model does not have, such as {left[0]}; takes those of the same model"
            )
        for name, p in trained.items():
            value = plain.get(name, plain.get(name.replace(f".{ADAPTER}.", ".")))
            if value is None and id(p) in inside:
                raise UserError(f"{key}: got weights with no {name}; takes those of the same model, trained alike")
            matched[name] = p.detach().clone() if value is None else value.to(p.device, p.dtype)
            layer = name.removesuffix(f".lora_B.{ADAPTER}.weight")
            if layer in own and value is not None:
                matched[name] = matched[name] * (scales[layer] / own[layer])
        return matched


def frozen(key: str, sets: ParameterSets, others: ParameterSets) -> None:
    """Makes the model of ``others`` one that nothing trains, and drops the copies that it holds. Errors: UserError where it is this one."""
    own = {held_of(p).data_ptr() for p in sets.module.parameters()}
    if any(held.data_ptr() in own for held in map(held_of, others.module.parameters()) if held.numel()):
        raise UserError(f"{key}: shares weights with the policy that is trained; takes a model that was loaded by itself")
    others.module.requires_grad_(False)
    others.sets.clear()


def _of_rank(p: Tensor, rank: int | None, *, down: bool) -> list[int]:
    """The shape of a parameter; of A ``[rank, in]``, or B ``[out, rank]``, with another rank."""
    own = list(p.shape)
    if rank is None:
        return own
    return [rank, own[1]] if down else [own[0], rank]


@contextmanager
def replaced(
    module: nn.Module | None, parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], *, home: torch.device | None = None
) -> Iterator[dict[str, Tensor]]:
    """While the block lasts, a module's parameters hold the values of the same names, and their own are in the table that is given.

    module: what is gathered of it is dropped before and after; None: nothing is. home: where their own wait, their device by default.

    Values are copied into the parameters' storage and back, one parameter at a time, and nothing else of them changes: gradients, flags
    and an optimiser's state stay. Their version counters count the copies inside of the block and are set back after it, where the
    values are again, bit for bit, those that a graph from before was recorded with.
    """
    before: dict[str, Tensor] = {}
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(parameters[key] for key in values)):
        try:
            if module is not None:
                reshard(module)
            with torch.no_grad():
                for key, value in values.items():
                    p = parameters[key]
                    before[key] = p.detach().to(home or p.device, copy=True)
                    p.copy_(like(value, p))
            yield before
        finally:
            if module is not None:
                reshard(module)
            with torch.no_grad():
                for key, own in before.items():
                    parameters[key].copy_(own)
