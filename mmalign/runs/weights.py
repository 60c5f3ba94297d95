"""Weights as folders and files on disk hold them: a run's, an adapter of peft's or diffusers', a whole model's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmalign.matching import message_of
from mmalign.runs import checkpoint
from mmalign.types import UserError

DENOISERS = ("transformer", "transformer_2", "unet", "image_unet", "prior", "decoder")  # those of a pipeline are trained together
PIPELINE = "model_index.json"
BEST = ("best", "ema", "trained")  # which of a run's sets users get
DIFFUSERS, PEFT, PEFT_WEIGHTS = "pytorch_lora_weights.safetensors", "adapter_config.json", "adapter_model.safetensors"
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
    newest = place if (place / "state.json").is_file() else checkpoint.newest_sound(place / "checkpoints")
    if newest is not None:
        saved, state = checkpoint.load(newest)
        best, scales = saved[next(name for name in BEST if name in saved)], dict(state.get("learner", {}).get("scales", {}))
        if odd := [name for name in best if (match := PAIR.match(name)) and match[1] not in scales]:
            raise UserError(f"{key}: {newest} does not say the alpha of {odd[0]}: it was written before 0.2.0; takes an export of it")
        return Stored(best, scales)
    if (place / PIPELINE).is_file() and not (place / DIFFUSERS).is_file():
        return _denoisers(place, key)
    files = [file for file in (place, place / DIFFUSERS) if file.is_file()][:1] or sorted(place.glob("*.safetensors"))
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise UserError(f"{key}: {place} holds neither a checkpoint nor safetensors; takes a run, an adapter or a model")
    tensors, header = dict[str, Tensor](), dict[str, Any]()
    for file in files:
        more, more_header = _file(file, key)
        tensors, header = tensors | more, header | more_header
    beside = files[0].parent / PEFT
    if beside.is_file():
        header = _read_header(beside.read_bytes(), f"{key}: {beside}")
        if header.get("lora_alpha") is None:
            raise UserError(f"{key}: {beside}: lora_alpha is missing; takes a number")
    elif any(file.name == PEFT_WEIGHTS for file in files):
        raise UserError(f"{key}: {files[0].parent} holds {PEFT_WEIGHTS} without {PEFT}, which says its alpha; takes both")
    ranks = {match[1]: value.shape[0] if value.ndim else 0 for name, value in tensors.items() if (match := PAIR.match(name))}
    if empty := [layer for layer, rank in ranks.items() if not rank]:
        raise UserError(f"{key}: {place}: {empty[0]} is of rank 0; takes an adapter of rank 1 or more")
    scales = {layer: _scale(layer, rank, header, tensors.get(f"{layer}.alpha"), f"{key}: {place}") for layer, rank in ranks.items()}
    return Stored({name: value for name, value in tensors.items() if not name.endswith(".alpha")}, scales)


def _denoisers(place: Path, key: str) -> Stored:
    """Of the folder of a pipeline its denoisers: one by its own names, several by theirs and that of each."""
    parts = [name for name in DENOISERS if any((place / name).glob("*.safetensors"))]
    if not parts:
        raise UserError(f"{key}: {place} is a pipeline that holds none of {', '.join(DENOISERS)} as safetensors; takes one that does")
    tensors = dict[str, Tensor]()
    for name in parts:
        prefix = f"{name}." if len(parts) > 1 else ""
        for file in sorted((place / name).glob("*.safetensors")):
            tensors |= {f"{prefix}{own}": value for own, value in _file(file, key)[0].items()}
    return Stored(tensors, {})


def _file(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors, and what its header says of an adapter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the handle is not a dict)
            header = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    except (SafetensorError, OSError, ValueError, AttributeError) as error:  # AttributeError: a type that this torch does not have
        raise UserError(f"{key}: {path} cannot be read as safetensors: {message_of(error)}") from error
    return tensors, _read_header(header, f"{key}: {path}")


def _read_header(text: str | bytes, where: str) -> dict[str, Any]:
    """What an adapter says of itself. Errors: UserError that begins with ``where`` for what is no mapping in JSON."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {message_of(error)}; takes JSON that says an adapter's alpha") from error
    if not isinstance(header, dict):
        raise UserError(f"{where}: got {type(header).__name__}, takes a mapping that says an adapter's alpha")
    return header


def _scale(layer: str, rank: int, header: Mapping[str, Any], alpha: Tensor | None, where: str) -> float:
    """alpha / rank of a layer, by what is said closest to it. Errors: UserError that begins with ``where`` for what is no number."""
    prefix = next((f"{part}." for part in (layer.partition(".")[0],) if f"{part}.lora_alpha" in header), "")
    configured = header.get(f"{prefix}lora_alpha")
    if alpha is None and configured is None:
        return 1.0
    patterns = header.get(f"{prefix}alpha_pattern") or {}
    name = layer.removeprefix(prefix)
    try:
        own = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), configured)  # as peft matches
    except (AttributeError, re.error) as error:
        raise UserError(f"{where}: alpha_pattern: got {patterns!r}, takes a mapping of expressions to numbers") from error
    size: float = rank**0.5 if header.get(f"{prefix}use_rslora") else rank
    value = own
    if alpha is not None:
        value = alpha.flatten().tolist()[0] if alpha.numel() == 1 else None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < abs(value) < math.inf:
        raise UserError(f"{where}: the alpha of {layer} is {value!r}, takes a number other than 0")
    return value / size


def plain(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """By a module's own names, without what libraries put before them."""
    return {name.removeprefix(prefix): value for prefix in PREFIXES for name, value in tensors.items() if name.startswith(prefix)}
