"""Weights as folders and files on disk hold them: a run's, an adapter of peft's or diffusers', a whole model's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmalign.runs import checkpoint
from mmalign.types import UserError

BEST = ("best", "ema", "trained")  # which of a run's sets users get
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_config.json"
PREFIXES = ("base_model.model.", "transformer.", "unet.", "")  # of a library's names in a file; the plain name goes last, and wins
PAIR = re.compile(r"^(.+)\.lora_A\.(?:default\.)?weight$")


class Stored(NamedTuple):
    """tensors: by the names of the file. scales: alpha / rank of each LoRA layer, by its name there; empty for whole weights."""

    tensors: dict[str, Tensor]
    scales: dict[str, float]


def existing(place: str, key: str, *, runs: Path | None = None) -> Path:
    """A folder or file, or a run of that name in the folder ``runs``. Errors: UserError, by the config's ``key``, where there is none."""
    existing_path = next((path for path in (Path(place), *([runs / place] if runs else [])) if path.exists()), None)
    if existing_path is None:
        here = f"no folder {place}, and no run of that name in {runs}; takes a folder or a run" if runs else f"nothing at {place}"
        raise UserError(f"{key}: {here}" if runs else f"{key}: {here}; takes the folder of a run, of an adapter or a model, or a file")
    return existing_path


def read(place: Path, key: str) -> Stored:
    """Of a run its best parameters, as users get them; of an adapter its pairs; of another folder or file its safetensors.

    alpha and rank come from a run's checkpoint, from peft's ``adapter_config.json`` (patterns and ``use_rslora`` included), from the
    header that diffusers writes, or from tensors called ``LAYER.alpha``; where a file says none, the scale is 1, as loaders take it.
    Errors: UserError, by the config's ``key``, where there are no weights.
    """
    newest = place if (place / "state.json").is_file() else checkpoint.newest(place / "checkpoints")[0]
    if newest is not None:
        saved, state = checkpoint.load(newest)
        best, scales = saved[next(name for name in BEST if name in saved)], dict(state.get("learner", {}).get("scales", {}))
        if odd := [name for name in best if (match := PAIR.match(name)) and match[1] not in scales]:
            raise UserError(f"{key}: {newest} does not say the alpha of {odd[0]}: it was written before 0.2.0; takes an export of it")
        return Stored(best, scales)
    files = [file for file in (place, place / DIFFUSERS) if file.is_file()][:1] or sorted(place.glob("*.safetensors"))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise UserError(f"{key}: {place} holds neither a checkpoint nor safetensors; takes a run, an adapter or a model")
    tensors, header = dict[str, Tensor](), dict[str, Any]()
    for file in files:
        more, more_header = _file(file, key)
        tensors, header = tensors | more, header | more_header
    if (place / PEFT).is_file():
        header = json.loads((place / PEFT).read_text(encoding="utf-8"))
    layers = {match[1]: len(value) for name, value in tensors.items() if (match := PAIR.match(name))}
    scales = {layer: _scale(layer, rank, header, tensors.get(f"{layer}.alpha")) for layer, rank in layers.items()}
    return Stored({name: value for name, value in tensors.items() if not name.endswith(".alpha")}, scales)


def _file(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and what its header says of an adapter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the handle is not a dict)
            return tensors, json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be read as safetensors: {str(error).splitlines()[0]}") from error


def _scale(layer: str, rank: int, header: Mapping[str, Any], alpha: Tensor | None) -> float:
    """alpha / rank of a layer, by what is said closest to it."""
    prefix = next((f"{part}." for part in (layer.partition(".")[0],) if f"{part}.lora_alpha" in header), "")
    configured = header.get(f"{prefix}lora_alpha")
    if alpha is None and configured is None:
        return 1.0
    patterns = header.get(f"{prefix}alpha_pattern") or {}
    name = layer.removeprefix(prefix)
    own = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), configured)  # as peft matches
    size: float = rank**0.5 if header.get(f"{prefix}use_rslora") else rank
    return (float(own or 0) if alpha is None else float(alpha)) / size


def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """By a module's own names, without what libraries put before them."""
    return {name.removeprefix(prefix): value for prefix in PREFIXES for name, value in tensors.items() if name.startswith(prefix)}
