"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all. No pickle.

::

    checkpoints/step_000040/
        trained.safetensors  ema.safetensors  optimizer.safetensors ...   one file per group of named tensors
        state.json          {"step", "state", "files": {name: {"bytes", "crc32"}}, "crc32": of the rest}, written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.types import UserError

PREFIX = "step_"
NAME = re.compile(rf"{PREFIX}(\d+)", re.ASCII)
TEMPORARY, ASIDE, LEAVING = ".tmp", ".old", ".gone"  # what hidden folders beside the checkpoints end with


def save(
    folder: Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2, every: int = 1
) -> Path:
    """Writes ``folder/step_000040`` and then removes all but the newest ``keep`` checkpoints up to that step (``prune``).

    Everything goes into a hidden folder that is flushed to disk and renamed at the end, so a crash leaves the older
    checkpoints as they were; what else it leaves, ``sweep`` puts right.

    folder: the run's ``checkpoints``. tensors: group -> name -> tensor of any dtype, device, strides and sharing; tensors
    that are one and the same come back as one. state: anything JSON knows; floats come back bit for bit.
    """
    if keep < 1:
        raise UserError(f"keep: got {keep}, takes 1 or more checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{PREFIX}{step:06d}"
    temporary = folder / f".{target.name}.{os.getpid()}{TEMPORARY}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        files = {}
        for group, named_tensors in tensors.items():
            written = _write_tensors(temporary / f"{group}.safetensors", named_tensors)
            files[written.name] = {"bytes": written.stat().st_size, "crc32": _crc32(written)}
        body = json.loads(json.dumps({"step": step, "state": state, "files": files}))
        (temporary / "state.json").write_text(json.dumps({**body, "crc32": _crc32_of(body)}, indent=1), encoding="utf-8")
        _flush(temporary / "state.json")
        _flush(temporary)
        _swap(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(folder)
    prune(folder, step, keep=keep, every=every)
    return target


def prune(folder: Path, step: int, *, keep: int = 2, every: int = 1) -> None:
    """Removes all but the newest ``keep`` checkpoints up to ``step``, which has to be a sound one.

    every: of those before the newest, the ones of every so many steps are kept first: a run that was stopped between two of them then
    leaves what an uninterrupted one does.
    """
    newest_first = [path for path in _all(folder) if step_of(path) <= step]
    for old in newest_first[:1] + sorted(newest_first[1:], key=lambda path: step_of(path) % every > 0):
        if keep > 0:
            keep -= 1
            continue
        leaving = old.with_name(f".{old.name}{LEAVING}")  # so that no half of it is ever taken for a checkpoint
        _discard(leaving)
        os.replace(old, leaving)
        _discard(leaving)


def sweep(folder: Path) -> None:
    """Puts right what a kill in the middle of ``save`` left: hidden folders go, and a checkpoint that had stepped aside comes back."""
    for path in sorted(folder.glob(f".{PREFIX}*")):
        whole = path.with_name(path.name.removeprefix(".").removesuffix(ASIDE))
        if path.suffix == ASIDE and not whole.exists():
            os.replace(path, whole)
        elif path.suffix in (TEMPORARY, ASIDE, LEAVING):
            _discard(path)


def _swap(new: Path, target: Path) -> None:
    # a non-empty folder cannot be replaced in one call: the old one steps aside first
    aside = target.with_name(f".{target.name}{ASIDE}")
    _discard(aside)
    if target.exists():
        os.replace(target, aside)
    os.replace(new, target)
    _discard(aside)


def _discard(path: Path) -> None:
    """Removes a folder, or whatever else stands there; one that is not there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    same: dict[str, str] = {}  # name -> the name under which the very same tensor is stored
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
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
    try:
        save_file(stored, str(path), metadata={"same": json.dumps(same)})
    except SafetensorError as error:  # what it raises in place of an OSError says its number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
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


def _crc32_of(body: Any) -> int:
    """Of JSON, whatever the order of its keys."""
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix(PREFIX))


def _all(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name)), key=step_of, reverse=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None: state.json and the files in its list are what was written."""
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(body, dict) or body.keys() != {"step", "state", "files", "crc32"}:
            return "state.json is damaged, or was written before 0.2.0"
        if body.pop("crc32") != _crc32_of(body):
            return "state.json has changed since it was written"
        if NAME.fullmatch(path.name) and step_of(path) != body["step"]:
            return f"it holds step {body['step']}"
        for name, known in body["files"].items():
            if (path / name).stat().st_size != known["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes of {known['bytes']}"
            if _crc32(path / name) != known["crc32"]:
                return f"{name} has changed since it was written"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        return "state.json is damaged"
    return None


def identity(path: Path) -> int:
    """What tells a checkpoint from every other one: a checksum of its state and of the checksums of its files."""
    return int(json.loads((path / "state.json").read_text(encoding="utf-8"))["crc32"])


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


def newest_step(folder: Path) -> int:
    """The step of the newest sound checkpoint of ``folder``, or -1."""
    path = latest(folder)
    return -1 if path is None else step_of(path)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, state) as they were given to ``save``, on the CPU. Errors: UserError where the checkpoint is damaged."""
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
