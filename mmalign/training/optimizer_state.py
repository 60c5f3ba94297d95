"""The optimiser, and its state as tensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmalign.distributed.meshes import like, whole
from mmalign.types import UserError

PARTS = ("codes", "scale", "qmap")  # what a state of torchao's 8-bit optimisers consists of


def alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters that one operation takes together: those in shards apart from whole ones."""
    groups: dict[type, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(type(parameter.detach()), []).append(parameter)
    return list(groups.values())


def parted(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same with the parameters of each group in groups of those that it can take together; a checkpoint does not know of it."""
    groups = [{**group, "params": some} for group in optimizer.param_groups for some in alike(group["params"])]
    optimizer.param_groups[:] = groups
    return optimizer


class OfWholeMatrices(torch.optim.Optimizer):
    """An optimiser that has to see whole matrices, over parameters in shards: one of them at a time is put together and stepped.

    make: the optimiser of some parameters. All processes compute the same step of a matrix, and keep their rows of it and of its state;
    of a state in 8 bits those of its codes, and all of its scales, a 64th of the matrix's bytes, since their blocks are not of rows.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], make: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]):
        made = make(parameters)
        super().__init__(made.param_groups, made.defaults)
        self.make = make

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # nobody asks for the loss
        """One step of every parameter with a gradient; takes all processes. closure: of torch's interface, not used."""
        for group in self.param_groups:
            settings = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, settings)

    def _step(self, parameter: nn.Parameter, settings: Mapping[str, Any]) -> None:
        matrix = nn.Parameter(whole(parameter.detach()))
        matrix.grad = whole(parameter.grad.detach()) if parameter.grad is not None else None
        one = self.make([matrix])
        one.param_groups[0].update(settings)
        held_whole = {key: whole(held) if isinstance(held, Tensor) else held for key, held in self.state[parameter].items()}
        one.state[matrix] = _packed(held_whole, parameter.dtype)
        one.step()
        if matrix.data_ptr() != parameter.data_ptr():
            parameter.copy_(like(matrix.detach(), parameter))
        entries = _unpacked(one.state[matrix]).items()
        self.state[parameter] = {key: like(held, parameter) if isinstance(held, Tensor) else held for key, held in entries}


def clipped(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients together, which are scaled down to ``most`` where it is larger; of shards in all processes at once."""
    groups = alike(parameters)
    norms = [whole(nn.utils.get_total_norm([p.grad for p in group if p.grad is not None])) for group in groups]
    norm = norms[0] if len(norms) == 1 else torch.stack([each.to(norms[0].device) for each in norms]).norm()
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, most, norm)
    return norm


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as named tensors and JSON.

    names: parameter name -> parameter, holding every parameter of the optimiser (``policy.parameters()``), so that the state
    is found again by name whatever the order. Tensors are called ``exp_avg/<parameter>`` and ``group/0/lr``, and those that an 8-bit
    state consists of ``exp_avg.codes/<parameter>``.
    """
    called = _called(optimizer, names)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, entries in optimizer.state.items():
        name = called[id(parameter)]
        for key, value in _unpacked(entries).items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = _number(key, value)
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        settings = {key: _number(key, value) for key, value in group.items() if key != "params" and not isinstance(value, Tensor)}
        named = [called[id(p)] for p in group["params"]]
        if groups and settings == {key: value for key, value in groups[-1].items() if key != "params"}:  # as ``parted`` makes them
            groups[-1]["params"] += named
            continue
        tensors |= {f"group/{len(groups)}/{key}": value for key, value in group.items() if isinstance(value, Tensor)}
        groups.append({"params": named, **settings})
    for group in groups:
        group["params"] = [name for name in names if name in set(group["params"])]
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Puts what ``flatten_optimizer`` gave into a fresh optimiser over the same parameters, bit for bit.

    Not through ``load_state_dict``, which casts float32 state to the dtype of a bfloat16 parameter.

    Errors: UserError where the parameters or their groups are not the same.
    """
    called = _called(optimizer, names)
    here = [[called[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    there = [group["params"] for group in state["groups"]]
    inside = {name: number for number, group in enumerate(there) for name in group}
    if sorted(name for group in here for name in group) != sorted(inside) or any(len({inside[name] for name in g}) > 1 for g in here):
        strange = sorted({name for group in here for name in group} ^ {name for group in there for name in group})
        raise UserError(f"optimizer: the checkpoint's parameters are not these: {', '.join(strange[:5]) or 'grouped otherwise'}")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = dict(state["numbers"].get(called[id(parameter)], {}))
    owners = {called[id(p)]: (p, group) for group in optimizer.param_groups for p in group["params"]}
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")
        if key == "group":
            index, _, setting = name.partition("/")
            for number, own in zip((inside[group[0]] for group in here), optimizer.param_groups, strict=True):
                if number == int(index):
                    own[setting] = tensor.clone()
            continue
        parameter, group = owners[name]
        # torch keeps the count of steps on the CPU unless the update is captured or fused
        stays = key == "step" and not (group.get("capturable") or group.get("fused"))
        optimizer.state[parameter][key] = tensor.clone() if stays else like(tensor.to(parameter.device, copy=True), parameter)
    if not isinstance(optimizer, OfWholeMatrices):  # which packs what it has put together
        for parameter, entries in optimizer.state.items():
            optimizer.state[parameter] = _packed(entries, parameter.dtype)
    for group, named in zip(optimizer.param_groups, here, strict=True):
        for key, value in state["groups"][inside[named[0]]].items():
            if key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value
    for parameter in [p for p, entries in optimizer.state.items() if not entries]:
        del optimizer.state[parameter]  # a parameter that has not been stepped has no state


def _called(optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor]) -> dict[int, str]:
    called = {id(parameter): name for name, parameter in names.items()}
    unnamed = sum(id(p) not in called for group in optimizer.param_groups for p in group["params"])
    if unnamed:
        raise UserError(f"optimizer: got {unnamed} parameters without a name, takes a name for each")
    return called


def _eight_bit(value: Any) -> bool:
    """Whether this is a state of torchao's 8-bit optimisers, which has no storage of its own that could be written."""
    return isinstance(value, Tensor) and is_traceable_wrapper_subclass(value) and set(PARTS) <= set(value.__tensor_flatten__()[0])


def _unpacked(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state with the tensors that 8-bit ones consist of (``exp_avg.codes``) beside what else they are (``exp_avg``)."""
    apart = dict(entries)
    for key, value in entries.items():
        if _eight_bit(value):
            apart |= {key: {"signed": value.signed}, **{f"{key}.{part}": getattr(value, part) for part in PARTS}}
    return apart


def _packed(entries: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """``_unpacked`` entries as they were. dtype: of the parameter."""
    packed = dict(entries)
    for key, value in entries.items():
        if isinstance(value, dict):
            from torchao.optim.subclass_8bit import OptimState8bit

            packed[key] = OptimState8bit(**{part: packed.pop(f"{key}.{part}") for part in PARTS}, **value, dtype=dtype)
    return packed


def _number(key: str, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_number(key, item) for item in value]
    if isinstance(value, dict):
        return {name: _number(key, item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"optimizer: cannot save {key!r} of type {type(value).__name__}, takes tensors, numbers, strings and lists of them")
