"""Reads exports as somebody who has never heard of mmalign: diffusers, peft, and the tensors of the safetensors files alone.

python -I reader.py FOLDER    # a line of JSON for each case and reader: how many layers, and how far the worst is from what was trained

A case is a folder with ``base`` (what was trained on), ``export``, ``case.json`` and ``expected.safetensors``: ``PART|LAYER`` -> the
trained change of that layer's weight ``[out, in]`` in float64; PART is a denoiser's name, or ``model``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

Deltas = dict[str, Tensor]
HALVES = {"lora_A": "A", "lora_B": "B", "lora.down": "A", "lora.up": "B"}
HALF = re.compile(r"^(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora\.down|lora\.up)\.weight$")


def by_diffusers(case: Path) -> Deltas:
    """``load_lora_weights``, as the pages of diffusers write it; Wan's second expert is told so."""
    pipe = pipeline(case / "base")
    pipe.load_lora_weights(str(case / "export"))
    if (case / "export" / "transformer_2").is_dir():
        pipe.load_lora_weights(str(case / "export" / "transformer_2"), load_into_transformer_2=True)
    return {key: delta for part, module in parts(pipe) for key, delta in in_place(part, module).items()}


def by_peft(case: Path) -> Deltas:
    """``PeftModel.from_pretrained``."""
    if not (case / "export" / "peft").is_dir():
        model = getattr(transformers, notes(case)["auto"]).from_pretrained(str(case / "base"))
        return in_place("model", PeftModel.from_pretrained(model, str(case / "export")))
    pipe, deltas = pipeline(case / "base"), Deltas()
    for folder in sorted((case / "export" / "peft").iterdir()):
        deltas |= in_place(folder.name, PeftModel.from_pretrained(pipe.components[folder.name], str(folder)))
    return deltas


def by_tensors_of_diffusers(case: Path) -> Deltas:
    """``B @ A`` of the file, and nothing else of it: no header, no alpha."""
    files = [case / "export", *(path for path in [case / "export" / "transformer_2"] if path.is_dir())]
    deltas = Deltas()
    for folder in files:
        for layer, delta in products(folder / "pytorch_lora_weights.safetensors").items():
            part, _, name = layer.partition(".")
            deltas[f"{folder.name if folder.name == 'transformer_2' else part}|{name}"] = delta
    return deltas


def by_tensors_of_peft(case: Path) -> Deltas:
    """The same of peft's file."""
    home = case / "export" / "peft"
    folders = {path.name: path for path in sorted(home.iterdir())} if home.is_dir() else {"model": case / "export"}
    files = {part: folder / "adapter_model.safetensors" for part, folder in folders.items()}
    return {f"{part}|{layer}": delta for part, file in files.items() for layer, delta in products(file).items()}


def by_weights(case: Path) -> Deltas:
    """What the whole pipeline in ``merged`` has other weights than the base."""
    merged = dict(parts(pipeline(case / "export" / "merged")))
    deltas = Deltas()
    for part, module in parts(pipeline(case / "base")):
        weights = merged[part].state_dict()
        for name, value in module.state_dict().items():
            if bool((change := weights[name].double() - value.double()).any()):
                deltas[f"{part}|{name.removesuffix('.weight')}"] = change
    return deltas


def readers(case: Path) -> Iterator[tuple[str, Any]]:
    """Who can read a case, by its files."""
    if (case / "export" / "pytorch_lora_weights.safetensors").is_file():
        yield "diffusers", by_diffusers
        yield "tensors of diffusers' file", by_tensors_of_diffusers
    if (case / "export" / "merged").is_dir():
        yield "merged weights", by_weights
    yield "peft", by_peft
    yield "tensors of peft's file", by_tensors_of_peft


def pipeline(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parts(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    return ((name, part) for name, part in pipe.components.items() if isinstance(part, nn.Module))


def in_place(part: str, module: nn.Module) -> Deltas:
    """What the adapters in a module add to its layers, by the layers' own scale."""
    layers = {name.removeprefix("base_model.model."): layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    deltas = {name: (layer.get_delta_weight(layer.active_adapters[0]).double(), layer.fan_in_fan_out) for name, layer in layers.items()}
    return {f"{part}|{name}": delta.T if turned else delta for name, (delta, turned) in deltas.items()}  # GPT-2's are [in, out]


def products(file: Path) -> Deltas:
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(str(file)).items():
        match = HALF.match(name)
        if match is None:
            raise SystemExit(f"{file}: holds {name}, which is half of no LoRA")
        halves.setdefault(match[1], {})[HALVES[match[2]]] = value.double()
    return {layer: both["B"] @ both["A"] for layer, both in halves.items()}


def notes(case: Path) -> dict[str, Any]:
    words: dict[str, Any] = json.loads((case / "case.json").read_text())
    return words


def main() -> None:
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    for case in sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.safetensors")):
        expected = load_file(str(case / "expected.safetensors"))
        for name, read in readers(case):
            with torch.no_grad():
                deltas = read(case)
            odd = sorted(deltas.keys() ^ expected.keys())
            worst = max((float((deltas[key] - expected[key]).abs().max()) for key in deltas.keys() & expected.keys()), default=float("nan"))
            size = max(float(delta.abs().max()) for delta in expected.values())
            print(
                json.dumps({"case": case.name, "reader": name, "layers": len(deltas), "odd": odd[:3], "worst": worst, "size": size}),
                flush=True,
            )
    if "mmalign" in sys.modules:
        raise SystemExit("mmalign was imported")


if __name__ == "__main__":
    main()
