"""What makes large models fit and run faster: each option finds the parts of a pipeline that it acts on, acts, and names them.

No option knows a model: parts are told apart by what ``pipe.components`` holds and by what their classes can do. What each costs and
saves stands in ``policies.diffusers.diffusers``; scripts/bench/memory.py measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from mmalign.devices import default_device
from mmalign.policies.adapters import fits_in_four_bits, store_in_four_bits
from mmalign.policies.settings import Compile, Lora, Memory
from mmalign.runs.weights import DENOISERS as DENOISERS
from mmalign.types import UserError

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
RECOMPILATIONS = 64  # a block sees gradient on and off, adapter on and off, several shapes: more than the 8 that torch allows


def options(pipe: Any) -> list[tuple[str, str]]:
    """What a config may say for this pipeline to save memory or time, and on which parts it acts; the cheapest first."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    nets = {name: part for name, part in parts.items() if name in DENOISERS}
    net_names, away = ", ".join(nets), ", ".join(name for name in parts if name not in {*nets, *pipe._exclude_from_cpu_offload})
    lines = (
        [("gradient_checkpointing: true", f"of {net_names}: activations of an update are computed twice")]
        if all(getattr(net, "_supports_gradient_checkpointing", False) for net in nets.values())
        else []
    )
    lines += [("offload: frozen", f"{away}: on the CPU while they wait")] if away else []
    lines += [("slice_vae: true", f"{', '.join(decoders)}: one row at a time")] if (decoders := _decoders(pipe, nets)) else []
    lines += [
        ("storage: float8", f"frozen weights of {net_names} in 8 bits, rounded (nf4: in 4)"),
        ("compile: true", f"blocks of {net_names}"),
    ]
    return lines


def refuse(memory: Memory, lora: Lora | None) -> None:
    """UserError for what can be seen to be wrong before a pipeline is loaded."""
    if memory.storage is not None and lora is None:
        raise UserError(f"policy.memory.storage: got {memory.storage!r} without lora, takes it for weights that are not trained")
    backend = None if isinstance(memory.compile, bool) else memory.compile.backend
    if isinstance(backend, str) and backend not in (backends := torch.compiler.list_backends(exclude_tags=())):
        raise UserError(f"policy.memory.compile.backend: got {backend!r}, takes {', '.join(backends)}")


# Where things are


def device_of(name: str | None) -> torch.device:
    """A device that is there; a GPU if there is one, by default. Errors: UserError for another."""
    if name is None:
        return default_device()
    there = ["cpu", *(["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))] if torch.cuda.is_available() else [])]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if str(name) not in there:
        raise UserError(f"policy.device: got {str(name)!r}, this machine has {', '.join(there)}")
    return torch.device(name)


class Offloaded:
    """Parts of a pipeline that live on the CPU and come to ``device`` for their own work.

    accelerate brings a part when it is called, and here also for ``encode`` and ``decode``, which not every VAE has marked for it.
    ``put_away`` sends back those that came. It is called as soon as a denoiser starts, so that an encoder and the activations of a
    denoiser never meet, and at the end of each call of the pipeline.
    """

    def __init__(self, parts: Mapping[str, nn.Module], denoisers: Iterable[nn.Module], device: torch.device):
        from accelerate import cpu_offload_with_hook

        self.names = list(parts)
        self._hooks = [cpu_offload_with_hook(part, device)[1] for part in parts.values()]
        for hook in self._hooks:
            for name in ("encode", "decode"):
                if callable(own := getattr(hook.model, name, None)):
                    hook.model.__dict__[name] = _after_coming(hook.model, own)
        for module in denoisers:
            module.register_forward_pre_hook(torch.compiler.disable(lambda *_: self.put_away()))

    def put_away(self) -> None:
        """Sends back to the CPU what is not there."""
        for hook in self._hooks:
            if next(hook.model.parameters()).device.type != "cpu":
                hook.offload()


def _after_coming(part: Any, own: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        part._hf_hook.pre_forward(part)
        return own(*args, **kwargs)

    return call


def place(pipe: Any, device: torch.device, *, offload: str | Iterable[str], working: Mapping[str, nn.Module]) -> Offloaded | None:
    """Puts a pipeline on a device, all but the components named in ``offload``: ``frozen`` means each that is not ``working``.

    Errors: UserError for a name that is no such component.
    """
    waiting = {offload} if isinstance(offload, str) else set(offload)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and any(True for _ in part.parameters())}
    may = {name: part for name, part in parts.items() if name not in working and name not in pipe._exclude_from_cpu_offload}
    if odd := sorted(waiting - {"frozen", "references", *may}):
        raise UserError(f"policy.memory.offload: got {odd[0]!r}, takes frozen, references{''.join(f', {name}' for name in may)}")
    away = may if "frozen" in waiting else {name: may[name] for name in may if name in waiting}
    if not away:
        pipe.to(device)
        return None
    for name, part in parts.items():
        part.to("cpu" if name in away else device)
    offloaded = Offloaded(away, working.values(), device)
    if pipe._execution_device.type != device.type:
        raise UserError(f"policy.memory.offload: {type(pipe).__name__} looks for its device at a part that stays; takes frozen")
    return offloaded


# What is kept for the backward pass


def checkpoint(denoisers: Mapping[str, nn.Module]) -> list[str]:
    """Activations are computed again in the backward pass, block by block. Errors: UserError for a class that cannot."""
    for name, module in denoisers.items():
        turn_on: Any = getattr(module, "enable_gradient_checkpointing", None)
        if turn_on is None or not getattr(module, "_supports_gradient_checkpointing", False):
            raise UserError(f"policy.memory.gradient_checkpointing: got true, and {name} ({type(module).__name__}) has none; takes false")
        turn_on()
    return list(denoisers)


# What weights are kept in


class _Upcast(torch.autograd.Function):
    """``x W^T + b`` of a ``W`` kept in 8 bits. The full ``W`` is made again for the backward pass instead of being kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _full(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradients[0] @ _full(weight, scale, gradients[0].dtype), None, None, None


def _full(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)


def _upcast_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Upcast.apply(x, layer.weight, layer.weight_scale, layer.bias)  # type: ignore[no-any-return, no-untyped-call]


def store(denoisers: Mapping[str, nn.Module], storage: str) -> list[str]:
    """Frozen weights of linear layers in the repeated blocks as ``float8`` (e4m3), one scale for each output, or ``nf4``; others stay.

    Arithmetic stays in the type that the weights had: it is the weights that are rounded, once, with a relative error of at most
    1/16 (but for those below 1/14,336 of the largest of their output), and rollout, replay and reference see the same ones.
    Not a plain cast, which is what diffusers' ``enable_layerwise_casting`` does and whose hooks swap a weight that the backward pass
    still needs. Returns the names of the layers. Errors: UserError where none is found.
    """
    layers = stored_layers(denoisers, storage)
    if storage == "nf4":
        store_in_four_bits(layers.values())
    else:
        for layer in layers.values():
            _store(layer)
    if not layers:
        raise UserError(
            f"policy.memory.storage: got {storage!r}, and no repeated block of {', '.join(denoisers)} has a frozen linear layer"
        )
    return list(layers)


def stored_layers(denoisers: Mapping[str, nn.Module], storage: str) -> dict[str, nn.Linear]:
    """The frozen linear layers in repeated blocks that ``store`` rounds, by name."""
    layers = dict[str, nn.Linear]()
    for part, module in denoisers.items():
        blocks = tuple(name + "." for name, child in module.named_modules() if isinstance(child, nn.ModuleList))
        for name, layer in module.named_modules():
            frozen = isinstance(layer, nn.Linear) and not layer.weight.requires_grad and "lora_" not in name
            if frozen and name.startswith(blocks) and (storage != "nf4" or fits_in_four_bits(layer)):
                layers[f"{part}.{name}"] = cast(nn.Linear, layer)
    return layers


@torch.no_grad()
def _store(layer: Any) -> None:
    weight = layer.weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True).clamp(min=2.0**-20)
    scale = (largest / LARGEST).log2().ceil().exp2()  # powers of 2 are exact in every type
    layer.register_buffer("weight_scale", scale, persistent=False)
    layer.weight = nn.Parameter((weight / scale).to(FLOAT8), requires_grad=False)
    layer.__dict__["forward"] = partial(_upcast_linear, layer)


# Decoding


def _decoders(pipe: Any, denoisers: Mapping[str, nn.Module]) -> dict[str, Any]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and name not in denoisers}
    return {name: part for name, part in parts.items() if callable(getattr(part, "decode", None))}


def slice_vae(pipe: Any, denoisers: Mapping[str, nn.Module]) -> list[str]:
    """Decoders take one row at a time: with the class's own ``enable_slicing``, or by a loop around ``decode``."""
    decoders = _decoders(pipe, denoisers)
    for part in decoders.values():
        if not _turned_on(part, "enable_slicing"):
            part.__dict__["decode"] = row_by_row(part.decode)
    return list(decoders)


def tile_vae(pipe: Any, denoisers: Mapping[str, nn.Module]) -> list[str]:
    """Decoders take large images in tiles. Errors: UserError for a class that has no ``enable_tiling``."""
    decoders = _decoders(pipe, denoisers)
    for name, part in decoders.items():
        if not _turned_on(part, "enable_tiling"):
            raise UserError(f"policy.memory.tile_vae: got true, and {name} ({type(part).__name__}) has no tiles; takes false")
    return list(decoders)


def _turned_on(part: Any, switch: str) -> bool:
    try:
        getattr(part, switch)()
    except (AttributeError, NotImplementedError):  # diffusers declares the switch for every VAE, and raises where a class has none
        return False
    return True


def row_by_row(decode: Callable[..., Any]) -> Callable[..., Any]:
    """``decode`` of one row after the other; what else has an entry for each row is taken apart alike."""

    def call(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = z.shape[0]

        def row(value: Any, number: int) -> Any:
            many = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == rows
            return value[number : number + 1] if many else value

        if rows == 1:
            return decode(z, *args, **kwargs)
        parts = [decode(*tree_map(partial(row, number=i), (z, *args)), **tree_map(partial(row, number=i), kwargs)) for i in range(rows)]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        if isinstance(parts[0], Mapping):  # an output class of diffusers
            return type(parts[0])(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    return call


# Compiling


def compile_blocks(denoisers: Mapping[str, nn.Module], options: bool | Compile) -> list[str]:
    """``torch.compile`` in place: of the blocks that a class says it repeats (``compile_repeated_blocks``), or else of those in its own
    lists of modules, or of the whole where it has none. A block is compiled once for all of its kind.

    options: keywords of ``torch.compile``, or True. Errors: UserError for what torch refuses.
    """
    keywords = {} if isinstance(options, bool) else {key: value for key, value in vars(options).items() if value is not None}
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILATIONS)
    for name, module in denoisers.items():
        whole: Any = module
        lists = [child for child in module.children() if isinstance(child, nn.ModuleList)]
        try:
            if getattr(module, "_repeated_blocks", None):
                whole.compile_repeated_blocks(**keywords)
            else:
                for part in [block for blocks in lists for block in blocks] or [whole]:
                    part.compile(**keywords)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"policy.memory.compile: {name} ({type(module).__name__}): {' '.join(str(error).split())[:200]}") from error
    return list(denoisers)
