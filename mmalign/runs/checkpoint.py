"""Checkpoints: safetensors and JSON in a folder that appears whole or not at all. No pickle.

::

    checkpoints/step_000040/
        trained.safetensors  ema.safetensors  optimizer.safetensors ...   one file per group of named tensors
        trained.1.safetensors ...      rows of those of them that are in shards: of process 1; of process 0 they are in the first file
        state.json          {"step", "state", "files": {name: {"bytes", "crc32"}}, "crc32": of the rest}, written last

A file with rows of tensors says in its header which rows they are, by the key and in the form of torch's distributed checkpoint. That
itself is not used: its processes pickle what they tell each other, and wait without end for one that has failed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.distributed.meshes import own_rows
from mmalign.distributed.team import ALONE, Team
from mmalign.files import usual_modes
from mmalign.types import UserError

PREFIX = "step_"
NAME = re.compile(rf"{PREFIX}(\d+)", re.ASCII)
TEMPORARY, ASIDE, LEAVING = ".tmp", ".old", ".gone"  # what hidden folders beside the checkpoints end with
ROWS, FIRST = "DCP_SHARDING_INFO", "saved_offsets"  # of a file's header, as torch.distributed.checkpoint has them


class Stored(NamedTuple):
    """A tensor of a checkpoint that is still on disk. parts: the first row of each, the opened file and the name there, in order."""

    shape: list[int]
    parts: list[tuple[int, Any, str]]

    def read(self, rows: slice | None = None) -> Tensor:
        """The tensor, or the rows of it from ``start`` to ``stop``, on the CPU: nothing else is read."""
        if rows is None and len(self.parts) == 1:
            return self.parts[0][1].get_tensor(self.parts[0][2])  # type: ignore[no-any-return]
        start, stop = (0, self.shape[0]) if rows is None else (rows.start, rows.stop)
        slices = [(first, file.get_slice(name)) for first, file, name in self.parts]
        ends = [first + piece.get_shape()[0] for first, piece in slices]
        inside = [(first, end, piece) for (first, piece), end in zip(slices, ends, strict=True) if first < stop and end > start]
        some = [piece[max(start - first, 0) : min(stop, end) - first] for first, end, piece in inside]
        return torch.cat(some) if some else slices[0][1][0:0]


class Group(Mapping[str, Tensor]):
    """Tensors of a checkpoint by name, each of them read when it is asked for. read: what is read of it."""

    def __init__(self, stored: Mapping[str, Stored], read: Callable[[str, Stored], Tensor]):
        self.stored, self.read = stored, read

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name, self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def save(  # one keyword for each thing that a checkpoint is of
    folder: Path, step: int, *, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2, every: int = 1,
    team: Team = ALONE,
) -> Path:  # fmt: skip
    """Writes ``folder/step_000040`` and then removes all but the newest ``keep`` checkpoints up to that step (``prune``).

    Everything goes into a hidden folder that is flushed to disk and renamed at the end, so a crash leaves the older
    checkpoints as they were; what else it leaves, ``sweep`` puts right.

    folder: the run's ``checkpoints``. tensors: group -> name -> tensor of any dtype, device, strides and sharing; tensors
    that are one and the same come back as one. state: anything JSON knows; floats come back bit for bit. team: processes that hold shards
    of the tensors, all of which call this: each writes its own, and the main one the rest. Errors: OSError, in all of them.
    """
    if keep < 1:
        raise UserError(f"keep: got {keep}, takes 1 or more checkpoints")
    target = folder / f"{PREFIX}{step:06d}"
    temporary = folder / team.tell(f".{target.name}.{os.getpid()}{TEMPORARY}")[0]
    try:
        if team.main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        team.tell("made")
        files = _agreed(team, lambda: _write(temporary, tensors, team))
        _agreed(team, lambda: _finish(temporary, target, {"step": step, "state": state, "files": files}) if team.main else {})
    finally:
        if team.main and not team.failed:  # or else another may still write there
            shutil.rmtree(temporary, ignore_errors=True)
    if team.main:
        prune(folder, step, keep=keep, every=every)
    return target


def _agreed(team: Team, write: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the processes wrote, together. Errors: OSError, in all of them, of the first that could not."""
    written, wrong = dict[str, Any](), None
    try:
        written = write()
    except OSError as error:
        if team.alone:
            raise
        wrong = error
    parts = team.tell([written, None if wrong is None else [wrong.errno, wrong.strerror, str(wrong.filename)]])
    for _, failure in parts:
        if failure is not None:
            raise OSError(*failure) from wrong
    return {name: entry for files, _ in parts for name, entry in files.items()}


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], team: Team) -> dict[str, Any]:
    """Writes what this process has of the tensors; the files' sizes and checksums by name."""
    files = {}
    for group, named in tensors.items():
        cut = {name: held for name, value in named.items() if (held := own_rows(value)) is not None}
        mine = {name: cut[name].value if name in cut else value for name, value in named.items() if team.main or name in cut}
        first = {name: held.first for name, held in cut.items()}
        mine = {name: value for name, value in mine.items() if team.main or len(value)}
        if not mine and not team.main:
            continue
        path = folder / f"{group}{'' if team.main else f'.{team.rank}'}.safetensors"
        _write_tensors(path, mine, {name: [at, *[0] * (mine[name].ndim - 1)] for name, at in first.items() if name in mine})
        files[path.name] = {"bytes": path.stat().st_size, "crc32": _crc32(path), **({} if team.main else {"group": group})}
    return files


def _finish(temporary: Path, target: Path, body: Mapping[str, Any]) -> dict[str, Any]:
    """All files are there: writes the list of them, and gives the folder its name."""
    body = json.loads(json.dumps(body))
    (temporary / "state.json").write_text(json.dumps({**body, "crc32": _crc32_of(body)}, indent=1), encoding="utf-8")
    _flush(temporary / "state.json")
    usual_modes(temporary)
    _flush(temporary)
    _swap(temporary, target)
    _flush(target.parent)
    return {}


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


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], rows: Mapping[str, list[int]]) -> None:
    """rows: of those that are parts of tensors, the place of their first number; tensors that are one and the same are then several.

    The header has one key: those of several stand in it in another order each time.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored: dict[str, Tensor] = {}
    same: dict[str, str] = {}  # name -> the name under which the very same tensor is stored
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach()
        view = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), str(value.device))
        if value.numel() and view in first and not rows:
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
        header = (ROWS, {name: {FIRST: rows[name]} for name in sorted(rows)}) if rows else ("same", same)
        save_file(stored, str(path), metadata={header[0]: json.dumps(header[1])})
    except SafetensorError as error:  # what it raises in place of an OSError says its number
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    _flush(path)


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


def damage(path: Path, some: slice = slice(None)) -> str | None:
    """What is wrong with a checkpoint, in a few words, or None: state.json and the files in its list are what was written.

    some: which of the files are looked at.
    """
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(body, dict) or body.keys() != {"step", "state", "files", "crc32"}:
            return "state.json is damaged, or was written before 0.2.0"
        if body.pop("crc32") != _crc32_of(body):
            return "state.json has changed since it was written"
        if NAME.fullmatch(path.name) and step_of(path) != body["step"]:
            return f"it holds step {body['step']}"
        for name, known in list(body["files"].items())[some]:
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


def newest_sound(folder: Path) -> Path | None:
    """The newest sound checkpoint of a run that is used, or None where it has none; warns of each damaged one that was passed over.

    Errors: UserError where all are damaged.
    """
    path, lines = newest(folder)
    if path is None and lines:
        raise UserError(f"{lines[0].removesuffix(', skipped')}, and there is no other; takes a run with a whole checkpoint")
    for line in lines:
        warnings.warn(f"{line}: {path} is used in its place", stacklevel=3)
    return path


def latest(folder: Path) -> Path | None:
    """The newest sound checkpoint of ``folder``, or None."""
    return newest(folder)[0]


def newest_step(folder: Path) -> int:
    """The step of the newest sound checkpoint of ``folder``, or -1."""
    path = latest(folder)
    return -1 if path is None else step_of(path)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors, state) as they were given to ``save``, on the CPU. Errors: UserError where the checkpoint is damaged."""
    groups, state = _opened(path, ALONE)
    return {group: _all_of(stored) for group, stored in groups.items()}, state


def load_parts(path: Path, read: Callable[[str, Stored], Tensor], team: Team) -> tuple[dict[str, Group], dict[str, Any]]:
    """The same in each of several processes, which look at some of the files each, whether they are sound, and read what they need.

    read: what is to be read of a tensor of that name, once it is asked for. Errors: UserError, in all of them, as of ``load``.
    """
    groups, state = _opened(path, team)
    return {group: Group(stored, read) for group, stored in groups.items()}, state


def _opened(path: Path, team: Team) -> tuple[dict[str, dict[str, Stored]], dict[str, Any]]:
    wrong = next((each for each in team.tell(damage(path, slice(team.rank, None, team.size))) if each is not None), None)
    if wrong is not None:
        raise UserError(f"{path}: got a damaged checkpoint ({wrong}), takes a whole one")
    body = json.loads((path / "state.json").read_text(encoding="utf-8"))
    groups: dict[str, dict[str, Stored]] = {}
    for name, known in body["files"].items():
        _look_into(path / name, groups.setdefault(known.get("group", name.removesuffix(".safetensors")), {}))
    return groups, body["state"]


def _look_into(path: Path, stored: dict[str, Stored]) -> None:
    """Adds what a file holds, rows of a tensor after those that are there."""
    from safetensors import safe_open

    file = safe_open(str(path), framework="pt")
    header = file.metadata()
    first = {name: place[FIRST][0] for name, place in json.loads(header.get(ROWS, "{}")).items()}
    names = {name: name for name in file.keys()}  # noqa: SIM118 (the handle is not a dict)
    for name, owner in {**names, **json.loads(header.get("same", "{}"))}.items():
        shape, before = file.get_slice(owner).get_shape(), stored.get(name, Stored([], []))
        total = shape if not before.parts else [before.shape[0] + shape[0], *shape[1:]]
        parts = [*before.parts, (first.get(owner, 0), file, owner)]
        stored[name] = Stored(total, sorted(parts, key=lambda part: part[0]))


def _all_of(stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """All that is stored; tensors that are one and the same once."""
    there: dict[Any, Tensor] = {}
    for one in stored.values():
        if (key := _place(one)) not in there:
            there[key] = one.read()
    return {name: there[_place(one)] for name, one in stored.items()}


def _place(stored: Stored) -> tuple[tuple[int, str], ...]:
    return tuple((id(file), name) for _, file, name in stored.parts)


def parameter_sets(names: Iterable[str]) -> tuple[str, ...]:
    """Of the groups of tensors in a run's checkpoint, those that are sets of parameters: no states of its optimiser or of rows, and no
    classifiers."""
    return tuple(name for name in names if name.partition(".")[0] not in ("optimizer", "recalled", "replayed", "classifier"))
