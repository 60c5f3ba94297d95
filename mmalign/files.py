"""Files that appear whole or not at all, JSON as it should be, and columns of numbers in JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmalign.types import UserError

WHOLE, PIECE = 64 * 2**20, 2**20  # bytes: files that are read whole to tell them apart, and how much at once


def plain(value: Any) -> Any:
    """The same value in what YAML and JSON know; a callable or an object becomes the name of its type or itself."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    owner = value if isinstance(value, type) or type(value).__name__ == "function" else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; lists stay whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    items: dict[str, Any] = {}
    for key, item in value.items():
        items.update(flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return items


def finite(value: Any) -> Any:
    """The same nested value with None in place of NaN and infinities, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def write_bytes(path: Path, data: bytes) -> Path:
    """Puts ``data`` at ``path`` whole or not at all, and returns the path: whatever goes wrong, the old file stays and no other is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """``write_bytes`` in UTF-8; a lone surrogate, which a file's name may hold, becomes its escape, which JSON reads again."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> Path:
    """``write_bytes`` as strict JSON: a number that is not finite is written as null."""
    return write_text(path, json.dumps(finite(plain(value)), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A place beside ``folder`` that takes its name once the block is through."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        yield place
        usual_modes(place)
        os.replace(place, folder)  # replaces an empty folder
    finally:
        shutil.rmtree(place, ignore_errors=True)


def gone(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def usual_modes(folder: Path) -> None:
    """Gives the files in a folder the mode of a new file: what safetensors writes (0.8) nobody but its owner could read."""
    example = folder / f".{os.getpid()}.mode"
    example.touch()
    usual = example.stat().st_mode
    example.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | usual)


def numbers(owner: str, path: str, columns: Sequence[str]) -> list[list[float]]:
    """The columns of a file of JSON lines, each a list.

    owner: how messages begin. columns: the keys of every line; their values are finite numbers.

    Errors: UserError with the line's number.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{owner}: no such file: {path}")
    table: list[list[float]] = [[] for _ in columns]
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = [float(row[column]) for column in columns]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{owner}: {path}, line {number}: takes an object with the numbers {', '.join(columns)}") from error
        if not all(math.isfinite(value) for value in values):
            raise UserError(f"{owner}: {path}, line {number}: takes finite numbers")
        for column, value in zip(table, values, strict=True):
            column.append(value)
    return table


def digest(files: Iterable[str | Path]) -> str:
    """What files are told apart by: their names, sizes and bytes; of one above 64 MiB pieces from its beginning to its end. '' for none."""
    hasher, count = hashlib.blake2b(digest_size=8), 0
    for path in map(Path, files):
        count, size = count + 1, path.stat().st_size
        pieces = range(0, size, PIECE) if size <= WHOLE else [part * (size - PIECE) // 63 for part in range(64)]
        hasher.update(f"{path.name} {size}".encode("utf-8", "surrogatepass"))
        with path.open("rb") as file:
            for start in pieces:
                file.seek(start)
                hasher.update(file.read(PIECE))
    return hasher.hexdigest() if count else ""
