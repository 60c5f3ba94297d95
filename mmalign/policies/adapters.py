"""LoRA adapters as files hold them: for peft and diffusers, merged into the weights, written whole or not at all."""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

ADAPTER = "default"  # what peft calls the adapter that parameters.add_lora injects


class Form(NamedTuple):
    """One way to load an export.

    name: ``diffusers``, ``peft`` or ``full``. code: Python lines that load it from ``folder`` into ``pipe``. modules: the denoisers
    that it holds, by name. load: (folder, fresh pipeline or None) -> pipeline.
    """

    name: str
    code: tuple[str, ...]
    modules: dict[str, nn.Module]
    load: Callable[[Path, Any], Any]


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A place beside ``folder`` that takes its name once the block is through."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
        os.replace(place, folder)  # replaces an empty folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


def adapter(module: nn.Module) -> tuple[dict[str, Tensor], Any]:
    """The LoRA weights of a module by peft's names (``blocks.0.to_q.lora_A.weight``), and its ``peft.LoraConfig``."""
    from peft import LoraConfig

    layers = lora_layers(module)
    first = next(iter(layers.values()))
    config = LoraConfig(r=first.r[ADAPTER], lora_alpha=first.lora_alpha[ADAPTER], target_modules=sorted(layers))
    return lora_weights(module), config


def merged(module: nn.Module) -> nn.Module:
    """A copy of a module with its LoRA added to its weights (``W + alpha / rank * B A``, Hu et al. 2021, equation 3) and taken out."""
    whole = copy.deepcopy(module)
    for name, layer in lora_layers(whole).items():
        layer.merge()
        whole.set_submodule(name, layer.get_base_layer())
    whole.__dict__.pop("peft_config", None)
    return whole


def lora_layers(module: nn.Module) -> dict[str, Any]:
    """The layers of a module that have a LoRA of peft's, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}


def lora_weights(module: nn.Module) -> dict[str, Tensor]:
    """By names without an adapter's name in them."""
    pattern = re.compile(r"\.(lora_[AB])\.[^.]+\.weight$")
    return {pattern.sub(r".\1.weight", name): p.detach() for name, p in module.named_parameters() if pattern.search(name)}


@contextmanager
def switched(module: nn.Module, *, on: bool) -> Iterator[None]:
    """While the block lasts, a module's adapters are on or off; they come back as they were. No parameter is touched.

    peft's own switch also freezes what it switches off, and by that the wrong tensors where ``fully_shard`` has put others in their place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = [(layer, layer.disable_adapters) for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    try:
        for layer, _ in before:
            layer._disable_adapters = not on
        yield
    finally:
        for layer, off in before:
            layer._disable_adapters = off


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config of peft's as JSON can hold it: sets become sorted lists."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def write_adapter(module: Any, place: Path) -> None:
    """``adapter_config.json`` and ``adapter_model.safetensors`` as peft reads them."""
    from safetensors.torch import save_file

    weights, config = adapter(module)
    config.inference_mode = True
    config.save_pretrained(str(place))
    stored = {f"base_model.model.{key}": value.cpu().contiguous() for key, value in weights.items()}
    save_file(stored, str(place / "adapter_model.safetensors"), metadata={"format": "pt"})
