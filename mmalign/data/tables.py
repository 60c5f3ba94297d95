"""Rows of files, in blocks that can be read in any order without holding all of them in memory.

A block is a file, a row group of a parquet file, a tar shard, or a data set of the Hugging Face library.
"""

from __future__ import annotations

import csv
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmalign.media import Broken
from mmalign.types import UserError

Row = dict[str, Any]
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


class Block(NamedTuple):
    """``open()`` gives the number of rows and a function from a row's number to the row, which may raise Broken."""

    name: str
    open: Callable[[], tuple[int, Callable[[int], Row]]]


def blocks(path: str, *, media: bool = True) -> list[Block]:
    """The blocks of a JSONL, JSON, CSV, parquet or tar file, or of a folder of them.

    media: whether text that names a file beside the data is that file's path; otherwise text stays as it is.

    A folder with a metadata file (``metadata.jsonl``, ``.csv`` or ``.parquet``) is an image folder, and that file alone is read.
    Paths inside a file are relative to its folder. Errors: UserError for no such file, another kind, or an empty folder.
    """
    place = Path(path)
    if place.is_dir():
        files = [place / name for name in METADATA if (place / name).is_file()][:1] or sorted(
            file for file in place.rglob("*") if file.suffix in _READERS and file.is_file()
        )
        if not files:
            raise UserError(f"records.path: {path} holds none of {', '.join(METADATA)}, and no file in {', '.join(_READERS)}")
    elif place.is_file():
        files = [place]
    else:
        raise UserError(f"records.path: no such file or folder: {path}")
    for file in files:
        if file.suffix not in _READERS:
            raise UserError(f"records.path: got {file.name}, takes a folder or a file in {', '.join(_READERS)}")
    found = [(file, block) for file in files for block in _READERS[file.suffix](file)]
    return [_with_paths(block, file.parent) if media else block for file, block in found]


def in_order(found: list[Block], *, seed: int | None, start: int = 0) -> Iterator[tuple[int, str, Row | Broken]]:
    """(number, id, row) of every row once: blocks in the order of ``seed``, and rows within them; None keeps the file's order.

    start: rows to pass over, which are not read. A row that cannot be read is a Broken in place of the row.
    """
    number = 0
    for place in _order(len(found), seed, 0):
        block = found[place]
        count, read = block.open()
        if number + count <= start:
            number += count
            continue
        for row in _order(count, seed, place + 1):
            number += 1
            if number <= start:
                continue
            name = f"{block.name}:{row + 1}"
            try:
                yield number, name, read(row)
            except Broken as error:
                yield number, name, error


def _order(count: int, seed: int | None, part: int) -> list[int]:
    if seed is None:
        return list(range(count))
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + part)).tolist()


def _lines(file: Path) -> list[Block]:
    """JSON lines: the places of lines are found once, and a line is read when it is wanted."""

    def opened() -> tuple[int, Callable[[int], Row]]:
        lines = [line for line in file.read_bytes().split(b"\n") if line.strip()]

        def read(number: int) -> Row:
            try:
                return _mapping(json.loads(lines[number]))
            except ValueError as error:
                raise Broken(f"not JSON: {error}") from error

        return len(lines), read

    return [Block(file.name, opened)]


def _json(file: Path) -> list[Block]:
    def opened() -> tuple[int, Callable[[int], Row]]:
        try:
            rows = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise UserError(f"records.path: {file} is not JSON: {error}") from error
        if not isinstance(rows, list):
            raise UserError(f"records.path: {file} holds one {type(rows).__name__}, takes a list of objects")
        return len(rows), lambda number: _mapping(rows[number])

    return [Block(file.name, opened)]


def _csv(file: Path) -> list[Block]:
    def opened() -> tuple[int, Callable[[int], Row]]:
        with open(file, encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
        return len(rows), lambda number: _mapping({key: value for key, value in rows[number].items() if key is not None})

    return [Block(file.name, opened)]


def _parquet(file: Path) -> list[Block]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError("records: parquet files need the package pyarrow, which is not installed") from error
    try:
        groups = parquet.ParquetFile(file).num_row_groups
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"records.path: {file} is no parquet file: {str(error).splitlines()[0]}") from error

    def block(group: int) -> Block:
        def opened() -> tuple[int, Callable[[int], Row]]:
            table = parquet.ParquetFile(file).read_row_group(group)
            return table.num_rows, lambda number: _mapping(table.slice(number, 1).to_pylist()[0])

        return Block(f"{file.name}#{group}", opened)

    return [block(group) for group in range(groups)]


def _shard(file: Path) -> list[Block]:
    """A webdataset shard: files that share a name up to the first dot are a row, keyed by what follows the dot.

    ``.txt`` and ``.cls`` are text, ``.json`` is an object whose keys join the row's; images stay bytes. ``jpg_0.jpg`` and
    ``0.jpg`` are called ``jpg_0`` too.
    """

    def opened() -> tuple[int, Callable[[int], Row]]:
        rows: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            shard = tarfile.open(file)  # noqa: SIM115 (kept open as long as the block is read)
            for member in shard:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    key, _, kind = name.partition(".")
                    rows.setdefault(f"{folder}/{key}", {})[kind] = member
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"records.path: {file} is not readable as tar: {error}") from error
        names = list(rows)

        def read(number: int) -> Row:
            row: Row = {"__key__": names[number].lstrip("/")}
            for kind, member in rows[names[number]].items():
                stored = shard.extractfile(member)
                row.update(_member(kind, b"" if stored is None else stored.read()))
            return row

        return len(names), read

    return [Block(file.name, opened)]


def _member(kind: str, content: bytes) -> Row:
    end = kind.rpartition(".")[2].lower()
    if end == "json":
        try:
            return _mapping(json.loads(content))
        except ValueError as error:
            raise Broken(f"{kind}: not JSON: {error}") from error
    name = kind.rpartition(".")[0] or kind
    name = f"jpg_{name}" if name in ("0", "1") else name
    if end in ("txt", "caption", "cls"):
        return {"caption" if kind == "txt" else name: content.decode("utf-8", errors="replace").strip()}
    return {name: content}


def _mapping(row: Any) -> Row:
    if not isinstance(row, dict):
        raise Broken(f"got {type(row).__name__}, takes an object")
    return {str(key): value for key, value in row.items()}


def _with_paths(block: Block, folder: Path) -> Block:
    """A block in whose rows relative paths are made those of files in ``folder``."""

    def opened() -> tuple[int, Callable[[int], Row]]:
        count, read = block.open()
        return count, lambda number: {key: _beside(value, folder) for key, value in read(number).items()}

    return Block(block.name, opened)


def _beside(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and 0 < len(value) < 1024 and "\n" not in value and not Path(value).is_absolute():
        return str(folder / value) if Path(value).suffix and (folder / value).is_file() else value
    if isinstance(value, list):
        return [_beside(item, folder) for item in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str) and value.get("bytes") is None:
        return {**value, "path": _beside(value["path"], folder)}
    return value


_READERS: dict[str, Callable[[Path], list[Block]]] = {
    ".jsonl": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".tar": _shard,
}  # fmt: skip
