"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all. No pickle.

::

    checkpoints/step_000040/
        trained.safetensors  ema.safetensors  optimizer.safetensors ...   one file per group of named tensors
        state.json          {"step", "state", "files": {name: {"bytes", "crc32"}}}, written last
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.types import UserError

PREFIX = "step_"


def save(folder: Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2) -> Path:
    """Writes ``folder/step_000040`` and then removes all but the newest ``keep`` checkpoints.

    Everything goes into a hidden folder that is flushed to disk and renamed at the end, so a crash leaves the older
    checkpoints as they were.

    folder: the run's ``checkpoints``. tensors: group -> name -> tensor of any dtype, device, strides and sharing; tensors
    that are one and the same come back as one. state: anything JSON knows; floats come back bit for bit.
    """
    if keep < 1:
        raise UserError(f"keep: got {keep}, takes 1 or more checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{step:06d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = {}
        for group, named in tensors.items():
            written = _write_tensors(temporary / f"{group}.safetensors", named)
            files[written.name] = {"bytes": written.stat().st_size, "crc32": _crc32(written)}
        body = json.dumps({"step": step, "state": state, "files": files}, indent=1)
        (temporary / "state.json").write_text(body, encoding="utf-8")
        _flush(temporary / "state.json")
        _flush(temporary)
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(folder)
    for old in _all(folder)[keep:]:
        shutil.rmtree(old)
    return target


def _swap(new: Path, target: Path) -> None:
    # a non-empty folder cannot be replaced in one call: the old one steps aside first
    aside = target.with_name(f".{target.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.exists():
        os.replace(target, aside)
    os.replace(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def _write_tensors(path: Path, named: Mapping[str, Tensor]) -> Path:
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    same: dict[str, str] = {}  # name -> the name under which the very same tensor is stored
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in named.items():
        value = tensor.detach()
        view = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), str(value.device))
        if value.numel() and view in first:
            same[name] = first[view]
            continue
        first[view] = name
        value = value.cpu()
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        if not whole or value.untyped_storage().data_ptr() in storages:
            value = value.clone(memory_format=torch.contiguous_format)
        storages.add(value.untyped_storage().data_ptr())
        stored[name] = value
    save_file(stored, str(path), metadata={"same": json.dumps(same)})
    _flush(path)
    return path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(PREFIX))


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None: its list of files is compared with what is there."""
    try:
        files = json.loads((path / "state.json").read_text(encoding="utf-8"))["files"]
        for name, known in files.items():
            if (path / name).stat().st_size != known["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes of {known['bytes']}"
            if _crc32(path / name) != known["crc32"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "state.json is damaged"
    return None


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest sound checkpoint of ``folder``, or None, and a line for each damaged one that was passed over."""
    lines: list[str] = []
    for path in _all(folder):
        wrong = damage(path)
        if wrong is None:
            return path, lines
        lines.append(f"{path}: damaged ({wrong}), skipped")
    return None, lines


def latest(folder: Path) -> Path | None:
    """The newest sound checkpoint of ``folder``, or None."""
    return newest(folder)[0]


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, state) as they were given to ``save``, on the CPU. Raises UserError where the checkpoint is damaged."""
    from safetensors import safe_open

    wrong = damage(path)
    if wrong is not None:
        raise UserError(f"{path}: got a damaged checkpoint ({wrong}), takes a whole one")
    body = json.loads((path / "state.json").read_text(encoding="utf-8"))
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in body["files"]:
        with safe_open(str(path / name), framework="pt") as file:
            group = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (the handle is not a dict)
            group |= {key: group[owner] for key, owner in json.loads(file.metadata()["same"]).items()}
        tensors[name.removesuffix(".safetensors")] = group
    return tensors, body["state"]


def parameter_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Of the groups of tensors in a run's checkpoint, those that are sets of parameters and not states of its optimiser."""
    return tuple(name for name in names if name.partition(".")[0] != "optimizer")


# ---- optimisers
