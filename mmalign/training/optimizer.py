"""The optimiser, and its state as tensors and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mmalign.types import UserError

PARTS = ("codes", "scale", "qmap")  # what a state of torchao's 8-bit optimisers consists of


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
        for key, value in entries.items():
            if _eight_bit(value):
                tensors |= {f"{key}.{part}/{name}": getattr(value, part) for part in PARTS}
                numbers.setdefault(name, {})[key] = {"signed": value.signed}
            elif isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = _number(key, value)
    groups = []
    for index, group in enumerate(optimizer.param_groups):
        settings: dict[str, Any] = {"params": [called[id(p)] for p in group["params"]]}
        for key, value in group.items():
            if isinstance(value, Tensor):
                tensors[f"group/{index}/{key}"] = value
            elif key != "params":
                settings[key] = _number(key, value)
        groups.append(settings)
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Puts what ``flatten_optimizer`` gave into a fresh optimiser over the same parameters, bit for bit.

    Not through ``load_state_dict``, which casts float32 state to the dtype of a bfloat16 parameter.

    Errors: UserError where the parameters or their groups are not the same.
    """
    called = _called(optimizer, names)
    here = [sorted(called[id(p)] for p in group["params"]) for group in optimizer.param_groups]
    there = [sorted(group["params"]) for group in state["groups"]]
    if here != there:
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
            optimizer.param_groups[int(index)][setting] = tensor.clone()
            continue
        parameter, group = owners[name]
        # torch keeps the count of steps on the CPU unless the update is captured or fused
        stays = key == "step" and not (group.get("capturable") or group.get("fused"))
        optimizer.state[parameter][key] = tensor.clone() if stays else tensor.to(parameter.device, copy=True)
    for parameter, entries in optimizer.state.items():
        for key in [key for key, value in entries.items() if isinstance(value, dict)]:
            entries[key] = _packed({part: entries.pop(f"{key}.{part}") for part in PARTS}, entries[key]["signed"], parameter.dtype)
    for group, settings in zip(optimizer.param_groups, state["groups"], strict=True):
        for key, value in settings.items():
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


def _packed(parts: Mapping[str, Tensor], signed: bool, dtype: torch.dtype) -> Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    packed: Tensor = OptimState8bit(**parts, signed=signed, dtype=dtype)
    return packed


def _number(key: str, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_number(key, item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(f"optimizer: cannot save {key!r} of type {type(value).__name__}, takes tensors, numbers, strings and lists of them")
