"""Language models of which several processes compute each row: each a part of the heads, and of what lies between a block's two layers.

Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, arXiv 1909.08053, section 3), by the plan that a model of transformers brings along
(``tp_plan``). A layer that the plan divides by columns is computed for a part of its outputs, one that it divides by rows for a part of its
inputs, and what the processes find is summed behind it. So they all have the same hidden states, make the same calls, and each keeps a
part of the heads' keys and values. Weights, and with them adapters, references and checkpoints, stay whole: of a weight a process uses its
own rows or columns where it is applied.

Going back, the sum is taken of gradients too. All of the processes begin with the whole loss, so that over them ``N`` of it are summed:
the gradient of a parameter is their sum over ``N``, whichever part of it is used where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmalign.distributed.meshes import mesh_of
from mmalign.policies.language.models.fitting import ROUNDING
from mmalign.types import UserError

BY_COLUMNS, BY_ROWS = "colwise", "rowwise"  # as a plan says it; what it divides otherwise stays whole
SHOWN = 8  # tokens that a model has to say the same of when it is divided


class Summed(torch.autograd.Function):
    """The sum over a group of processes, or without one (where memory is counted) as much as that takes; of gradients, too."""

    @staticmethod
    def forward(context: Any, value: Tensor, group: Any) -> Tensor:  # type: ignore[override]
        context.group = group
        return _sum(value, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _sum(gradient, context.group), None


def _sum(value: Tensor, group: Any) -> Tensor:
    from torch.distributed import all_reduce

    whole = value.detach().contiguous().clone()
    if group is not None:
        all_reduce(whole, group=group)
    return whole


class Divisible(Protocol):
    """A policy around a language model. together: how many processes compute each of its rows. stored: layers whose weights are rounded.
    engine, turns: what samples for it and replies to it, each process by itself."""

    model: Any
    together: int
    stored: int
    engine: Any
    turns: Any


def compute_together(policy: Divisible, count: int, world: int, place: int) -> None:
    """Each row by ``count`` processes, those of neighbouring places. world: how many processes there are. place: of this one.

    Errors: UserError for another number than an earlier run's, for what may give each of them other tokens, and as in ``divided``.
    """
    if count == policy.together:
        return
    kind = type(policy.model).__name__
    if policy.together > 1:
        raise UserError(f"devices.tensor: got {count}, and the layers of {kind} are divided by {policy.together} already; takes the same")
    apart = {"engine": policy.engine, "turns": policy.turns, "memory.storage": policy.stored or None}
    if names := [name for name, value in apart.items() if value is not None]:
        why = "keeps weights that cannot be divided" if names[0] == "memory.storage" else "may answer each process otherwise"
        raise UserError(f"devices.tensor: got {count}, and policy.{names[0]} {why}; takes 1")
    divided(policy.model, count, world, place)
    policy.together = count


def divided(model: Any, count: int, world: int, place: int) -> None:
    """Divides a model's layers by its plan. Takes all processes.

    Errors: UserError for a model without a plan, or whose heads and layers they do not divide, for layers that compute what a plan does
    not know of, and for one that says something else when it is divided.
    """
    kind, layers = type(model).__name__, layers_of(model, count)
    device = next(model.parameters()).device
    mesh = mesh_of(device.type, (world // count, count), ("rows", "tensor"))
    shown = torch.arange(SHOWN, device=device).remainder(model.config.get_text_config().vocab_size).unsqueeze(0)
    with torch.no_grad():
        whole = model(input_ids=shown, use_cache=False).logits
    for layer, style in layers.values():
        divide(layer, style, place % count, count, mesh.get_group("tensor"))
    try:
        with torch.no_grad():
            parts = model(input_ids=shown, use_cache=False).logits
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"devices.tensor: got {count}, and {kind} does not run when its plan divides it ({why}); takes 1") from error
    least = max(1.0, float(whole.abs().max())) * ROUNDING.get(whole.dtype, 1e-4)
    if not bool(((whole - parts).abs() <= least).all()):
        apart = float((whole - parts).abs().max())
        raise UserError(f"devices.tensor: got {count}, and logits of {kind} are {apart:.3g} away when its plan divides it; takes 1")


def layers_of(model: Any, count: int) -> dict[str, tuple[nn.Module, str]]:
    """``planned``. Errors: UserError where there are none, and where ``count`` does not divide them, or the model's heads."""
    layers = dict(planned(model))
    if not layers:
        raise UserError(f"devices.tensor: got {count}, and transformers has no plan that divides layers of {type(model).__name__}; takes 1")
    _refuse_undivided(model, layers, count)
    return layers


def planned(model: Any) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Linear layers of the decoder that the model's plan divides, by name: each, and by what."""
    plan = model.tp_plan
    words = {id(module) for module in model.get_decoder().modules()}
    for name, module in model.named_modules():
        style = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        if style in (BY_COLUMNS, BY_ROWS) and id(module) in words and parts_of(module):
            yield name, (module, style)


def parts_of(layer: nn.Module) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Of a linear layer, or of one under LoRA: those applied to its inputs, and those that make its outputs; none of another module."""
    from peft.tuners.lora import Linear

    if isinstance(layer, Linear):
        base, pairs = layer.get_base_layer(), [(layer.lora_A[name], layer.lora_B[name]) for name in layer.lora_A]
        return [base, *(first for first, _ in pairs)], [base, *(second for _, second in pairs)]
    return ([layer], [layer]) if type(layer) is nn.Linear else ([], [])


def _refuse_undivided(model: Any, layers: dict[str, tuple[nn.Module, str]], count: int) -> None:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    for what, number in (("heads", heads), ("heads of keys", getattr(config, "num_key_value_heads", None) or heads)):
        if number % count:
            has = f"{type(model).__name__} has {number} {what}"
            raise UserError(f"devices.tensor: got {count}, and {has}; takes a number that divides these")
    for name, (layer, style) in layers.items():
        entering, leaving = parts_of(layer)
        width = leaving[0].out_features if style == BY_COLUMNS else entering[0].in_features
        if width % count:
            raise UserError(f"devices.tensor: got {count}, and {name} has {width} numbers to divide; takes a number that divides these")
        if variants := getattr(layer, "lora_variant", None):
            which = type(next(iter(variants.values()))).__name__
            raise UserError(f"devices.tensor: got {count}, and {name} has LoRA as {which}; takes plain LoRA")


def divide(layer: nn.Module, style: str, place: int, count: int, group: Any) -> None:
    """Has a layer computed in ``count`` parts, of which this process computes one; behind a layer by rows they are summed."""
    entering, leaving = parts_of(layer)
    base = entering[0]
    if style == BY_COLUMNS:
        each = base.out_features // count
        for part in leaving:
            part.forward = _of_outputs(part, slice(each * place, each * (place + 1)))  # type: ignore[method-assign,assignment]
        return
    each = base.in_features // count
    for part in entering:
        part.forward = _of_inputs(part, slice(each * place, each * (place + 1)))  # type: ignore[method-assign,assignment]
    layer.forward = _summed(layer.forward, base, group)


def _of_outputs(part: nn.Linear, own: slice) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.linear(x, part.weight[own], None if part.bias is None else part.bias[own])


def _of_inputs(part: nn.Linear, own: slice) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.linear(x, part.weight[:, own])  # the bias once, behind the sum


def _summed(forward: Callable[..., Tensor], base: nn.Linear, group: Any) -> Callable[..., Tensor]:
    def summed(*given: Any, **more: Any) -> Tensor:
        whole: Tensor = Summed.apply(forward(*given, **more), group)
        return whole if base.bias is None else whole + base.bias

    return summed
