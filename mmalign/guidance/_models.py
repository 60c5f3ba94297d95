"""Which model predicts: a denoiser as it is, under other parameters, or another one, in the same call of a pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmalign.arguments.ranges import Finite
from mmalign.policies.parameters import replaced, reshard
from mmalign.policies.pipelines.loading.memory import DENOISERS
from mmalign.types import UserError

Model = str | nn.Module | Mapping[str, Tensor] | Mapping[str, Finite]
"""Which one predicts: ``current`` (the denoiser as it is), ``base`` (its adapters off), the name of an adapter, several adapters at once,
each with the factor of what it adds (``{good: 1.0, bad: 0.7}``), another model of the same call, or tensors by parameter name that take the
place of the denoiser's own."""

Call = Callable[..., Any]


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """A pipeline's denoisers by name."""
    return {name: pipe.components[name] for name in DENOISERS if isinstance(pipe.components.get(name), nn.Module)}


def check_model(pipe: Any, model: Model, where: str) -> None:
    """Errors: UserError for a model that the pipeline does not have; before anything is computed."""
    nets = denoisers_of(pipe)
    if isinstance(model, Mapping) and not any(isinstance(value, Tensor) for value in model.values()):
        for name, factor in model.items():
            check_model(pipe, name, where)
            if name in ("current", "base") or isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor):
                raise UserError(f"{where}: got {name}: {factor!r}, takes adapters by name, each with a finite factor")
        if not model:
            raise UserError(f"{where}: got no adapter, takes one or more, each with a factor")
    elif isinstance(model, str):
        adapters = sorted({name for net in nets.values() for layer in _layers(net) for name in layer.lora_A})
        if model == "base" and not adapters:
            raise UserError(f"{where}: got 'base', but {', '.join(nets)} of {type(pipe).__name__} has no adapter to switch off")
        if model not in ("current", "base", *adapters):
            raise UserError(
                f"{where}: got {model!r}, takes 'current', 'base', {', '.join(map(repr, adapters)) or 'or the name of an adapter'}"
            )
    elif isinstance(model, Mapping):
        own = {
            f"{prefix}{name}": p for net_name, net in nets.items() for prefix in ("", f"{net_name}.") for name, p in net.named_parameters()
        }
        for name, value in model.items():
            if name not in own or not isinstance(value, Tensor) or own[name].shape != value.shape:
                got = f"{name} {list(value.shape) if isinstance(value, Tensor) else value}"
                raise UserError(f"{where}: got {got}, which is no parameter of {', '.join(nets)}")
    elif not isinstance(model, nn.Module):
        raise UserError(f"{where}: got {type(model).__name__}, takes a name, a model or tensors by parameter name")


def predictor(name: str, net: nn.Module, own: Call, model: Model) -> Call:
    """A denoiser's call by that model; the denoiser is as it was afterwards, also after an exception."""
    if isinstance(model, nn.Module):
        return model
    if model == "current":
        return own
    if isinstance(model, Mapping):
        tensors = {key: value for key, value in model.items() if isinstance(value, Tensor)}
        change: Any = _values(name, net, tensors) if tensors else adapters(net, {key: float(factor) for key, factor in model.items()})
    else:
        change = adapters(net, model)

    def predict(*args: Any, **kwargs: Any) -> Any:
        with change():
            return own(*args, **kwargs)

    return predict


def _layers(net: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [layer for layer in net.modules() if isinstance(layer, LoraLayer)]


def adapters(net: nn.Module, model: str | Mapping[str, float]) -> Any:
    """() -> a context in which a model's adapters are off (``base``), or only those named are on; they come back as they were.

    model: ``base``, an adapter's name, or names with the factor of what each adds.
    """
    layers, factors = _layers(net), {model: 1.0} if isinstance(model, str) else model

    @contextmanager
    def change() -> Iterator[None]:
        kept = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in layers]
        flags = [(p, p.requires_grad) for layer in layers for name, p in layer.named_parameters() if "lora_" in name]
        scales = [(layer.scaling, dict(layer.scaling)) for layer in layers]
        try:
            for layer in layers:
                layer.enable_adapters(model != "base")
                if model != "base":
                    layer.set_adapter([name for name in factors if name in layer.lora_A])
                for name in factors:
                    if name in layer.lora_A:
                        layer.scaling[name] *= factors[name]
            yield
        finally:
            for scaling, before in scales:
                scaling.update(before)
            for layer, active, off in kept:
                layer.set_adapter(active)
                layer.enable_adapters(not off)
            for p, flag in flags:
                p.requires_grad_(flag)

    return change


def _values(name: str, net: nn.Module, model: Mapping[str, Tensor]) -> Any:
    reshard(net)
    own = dict(net.named_parameters())
    values = {key.removeprefix(f"{name}."): value for key, value in model.items() if key.removeprefix(f"{name}.") in own}
    return lambda: replaced(net, own, values)


@contextmanager
def intercepted(pipe: Any, make: Callable[[str, nn.Module, Call], Call]) -> Iterator[None]:
    """While the block lasts, each denoiser's calls are intercepted by ``make(name, denoiser, its own call)``.

    Put where torch looks for a compiled forward, so that hooks (offloading, sharding) run inside; blocks nest.
    """
    nets = denoisers_of(pipe)
    with ExitStack() as stack:
        for name, net in nets.items():
            before = net.__dict__.pop("_compiled_call_impl", None)
            own = before or net._call_impl
            net.__dict__["_compiled_call_impl"] = make(name, net, own)
            stack.callback(_put_back, net, before)
        yield


def _put_back(net: nn.Module, before: Any) -> None:
    del net.__dict__["_compiled_call_impl"]
    if before is not None:
        net.__dict__["_compiled_call_impl"] = before


class Progress:
    """How far a call's schedule has gone, 0 to 1, told by the times that its denoisers are asked at."""

    def __init__(self, pipe: Any):
        self.pipe, self.seen = pipe, list[float]()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        time = next((kwargs[name] for name in ("timestep", "timesteps", "t") if name in kwargs), args[1] if len(args) > 1 else 0.0)
        value = float(torch.as_tensor(time).detach().flatten()[0])
        if value not in self.seen:
            self.seen.append(value)
        return self.seen.index(value) / max(len(self.pipe.scheduler.timesteps), 1)


def blended(a: Any, b: Any, weight: float) -> Any:
    """``a + weight (b - a)`` of two outputs of one form; exactly ``a`` at 0 and ``b`` at 1 (``torch.lerp``)."""
    return tree_map(lambda x, y: torch.lerp(x, y, weight) if isinstance(x, Tensor) and x.is_floating_point() else x, a, b)
