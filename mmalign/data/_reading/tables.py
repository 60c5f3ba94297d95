"""Rows of files, in blocks that can be read in any order without holding all of them in memory.

A block is a file, a row group of a parquet file, a tar shard, or a data set of the Hugging Face library.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import torch

from mmalign.data._reading.parsing import excerpt, is_file, is_folder, parsed, short
from mmalign.data._reading.shards import MEMBER, shard
from mmalign.media import Broken, is_address
from mmalign.types import UserError

Row = dict[str, Any]
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE = "__file__"  # that a row is from, beside its columns
KEY = "__key__"  # of a row of a shard: the name that its members share
FIELD = 128 * 2**10  # bytes of a field of CSV, at least
LAST = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow's that is whole
UNFOLDED = 100  # bytes of a parquet row group, which is read whole, for each byte of its file, past the first 512 MiB
WIDTHS = {
    "BOOLEAN": 1,
    "INT32": 4,
    "INT64": 8,
    "INT96": 12,
    "FLOAT": 4,
    "DOUBLE": 8,
    "BYTE_ARRAY": 4,
}  # of a value; of a text, its reference


class Block(NamedTuple):
    """``open()`` gives the number of rows and a function from a row's number to the row, which may raise Broken.

    file: where the rows are from, and paths in them start; '' for none."""

    name: str
    open: Callable[[], tuple[int, Callable[[int], Row]]]
    file: str = ""


def blocks(path: str | Sequence[str], *, most: int = MEMBER) -> list[Block]:
    """The blocks of a JSONL, JSON, CSV, TSV, parquet, arrow or tar file, or of a folder of them, or of several of these.

    most: bytes of one member of a tar file.

    A folder that the ``datasets`` library has saved (``save_to_disk``) is read as that says. A folder with a metadata file
    (``metadata.jsonl``, ``.csv`` or ``.parquet``) is an image folder, and that file alone is read.
    A row keeps the path of its file (``__file__``): the paths of its media start in that folder.
    Errors: UserError for no such file, another kind, or an empty folder.
    """
    if not isinstance(path, str):
        if not path:
            raise UserError("records.path: got an empty list, takes one file or folder, or more")
        return [block for one in path for block in blocks(one, most=most)]
    place = Path(path)
    if is_folder(place):
        files = (
            saved(place)
            or [place / name for name in METADATA if (place / name).is_file()][:1]
            or sorted(file for file in place.rglob("*") if file.suffix.lower() in _READERS and file.is_file())
        )
        if not files:
            raise UserError(f"records.path: {path} holds none of {', '.join(METADATA)}, and no file in {', '.join(_READERS)}")
    elif is_file(place):
        files = [place]
    else:
        raise UserError(f"records.path: no such file or folder: {path[:240]}")
    for file in files:
        if file.suffix.lower() not in _READERS:
            raise UserError(f"records.path: got {file.name}, takes a folder or a file in {', '.join(_READERS)}")
    return [block for file in files for block in _READERS[file.suffix.lower()](file, most)]


def in_order(source: list[Block], *, seed: int | None, start: int = 0) -> Iterator[tuple[int, str, Row | Broken]]:
    """(number, id, row) of every row once: blocks in the order of ``seed``, and rows within them; None keeps the file's order.

    start: rows to pass over, which are not read. A row that cannot be read is a Broken in place of the row.
    """
    number = 0
    for place in _order(len(source), seed, 0):
        block = source[place]
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
                yield number, name, {**read(row), FILE: block.file} if block.file else read(row)
            except Broken as error:
                yield number, name, error


def _order(count: int, seed: int | None, part: int) -> list[int]:
    if seed is None:
        return list(range(count))
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + part)).tolist()


def _lines(file: Path, most: int) -> list[Block]:
    """JSON lines: the places of lines are found once, and a line is read when it is wanted."""
    return [Block(file.name, lambda: _of_lines(_no_utf16(file)), str(file))]


def _no_utf16(file: Path) -> bytes:
    """What a file holds. Errors: UserError where it begins as UTF-16 does, whose lines and columns are elsewhere."""
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"records.path: {file} is UTF-16, takes UTF-8 (iconv -f utf-16 -t utf-8)")
    return content


def _of_lines(content: bytes) -> tuple[int, Callable[[int], Row]]:
    lines = [line for line in content.split(b"\n") if line.strip()]  # JSON strings may hold any other mark that ends a line elsewhere
    return len(lines), lambda number: _mapping(parsed(lines[number]))


def numbered_lines(file: Path) -> Iterator[tuple[int, Row | Broken]]:
    """(number of the line from 1, its object or what is wrong with it) of every line of JSON that says something."""
    for number, line in enumerate(_no_utf16(file).split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, _mapping(parsed(line))
            except Broken as error:
                yield number, error


def _json(file: Path, most: int) -> list[Block]:
    """A list of objects, or, as many name JSON lines so, an object to each line."""

    def opened() -> tuple[int, Callable[[int], Row]]:
        content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
        try:
            rows = parsed(content)
        except Broken as error:
            if "Extra data" in str(error) and content.lstrip().startswith(b"{"):
                return _of_lines(content)
            raise UserError(f"records.path: {file} is {error}") from error
        if isinstance(rows, dict) and b"\n" not in content.strip():
            return _of_lines(content)
        if not isinstance(rows, list):
            raise UserError(f"records.path: {file} holds one {type(rows).__name__}, takes a list of objects, or an object to each line")
        return len(rows), lambda number: _mapping(rows[number])

    return [Block(file.name, opened, str(file))]


def _csv(file: Path, most: int) -> list[Block]:
    return [Block(file.name, lambda: _of_csv(file, ","), str(file))]


def _tsv(file: Path, most: int) -> list[Block]:
    return [Block(file.name, lambda: _of_csv(file, "\t"), str(file))]


def _of_csv(file: Path, between: str) -> tuple[int, Callable[[int], Row]]:
    """Rows of as many fields as the header has, fields of any length; others are broken, and so is a quote that nothing closes."""
    try:
        text = _no_utf16(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        old = error.object[error.start : error.start + 1].decode("cp1252", errors="replace")
        raise UserError(
            f"records.path: {file} is not UTF-8 (byte {error.start}; in cp1252 it would be {old!r}); "
            f"takes UTF-8 (iconv -f cp1252 -t utf-8, if cp1252 is what it is)"
        ) from error
    rows: list[list[str] | Broken] = []
    limit = csv.field_size_limit(max(FIELD, len(text)))  # of the whole process: put back below
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=between)
        while (row := _next(reader)) is not None:
            if row:
                rows.append(row)
    finally:
        csv.field_size_limit(limit)
    header = rows.pop(0) if rows else []
    if isinstance(header, Broken):
        raise UserError(f"records.path: {file}: {header}")
    if len(header) == 1 and (other := next((mark for mark in ";\t|," if mark != between and mark in header[0]), "")):
        raise UserError(f"records.path: {file} parts its columns by {other!r}, takes ',' in .csv and a tab in .tsv")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise UserError(f"records.path: {file} has two columns {excerpt(twice[0])}, takes one of a name")

    def read(number: int) -> Row:
        row = rows[number]
        if isinstance(row, Broken):
            raise row
        if len(row) != len(header):
            raise Broken(f"{len(row)} fields, the header has {len(header)}")
        return dict(zip(header, row, strict=True))

    return len(rows), read


def _next(reader: Any) -> list[str] | Broken | None:
    """The next row, what is wrong with it, or None at the end."""
    try:
        row: list[str] | None = next(reader, None)
        return row
    except csv.Error as error:
        return Broken(f"not CSV: {short(error)} (line {reader.line_num})")


def _parquet(file: Path, most: int) -> list[Block]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError("records: parquet files need the package pyarrow, which is not installed") from error
    damaged = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
    try:
        whole = parquet.ParquetFile(file)
        groups, most_of_it = whole.num_row_groups, max(2**29, UNFOLDED * file.stat().st_size)
        # a text that is stored once and referred to by many rows stays so: each row unfolds its own
        columns = [whole.schema.column(number) for number in range(len(whole.schema))]
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    except damaged as error:
        raise UserError(f"records.path: {file} is no parquet file: {short(error)}") from error

    def block(group: int) -> Block:
        def opened() -> tuple[int, Callable[[int], Row]]:
            try:
                stored = parquet.ParquetFile(file, page_checksum_verification=True, read_dictionary=texts)
                next(stored.iter_batches(batch_size=1, row_groups=[group]), None)  # its columns' descriptions raise here what aborts below
                size = _size(stored.metadata.row_group(group), stored.schema)
                if size > most_of_it:
                    raise Broken(f"a row group that unfolds to {size:,} bytes, takes at most {most_of_it:,}")
                table = stored.read_row_group(group)
                table.validate(full=True)
                large = sum(_unfolded(column) for column in table.columns) > most_of_it  # all its rows together, which nobody holds
            except (*damaged, Broken) as error:  # a group is read whole or not at all: what is wrong with it takes the place of its rows
                broken = error if isinstance(error, Broken) else Broken(f"not readable: {short(error)}")
                return 1, lambda number: _raised(broken)

            return table.num_rows, _of_table(table, most_of_it if large else None)

        return Block(f"{file.name}#{group}", opened, str(file))

    return [block(group) for group in range(groups)]


def _of_table(table: Any, most: int | None) -> Callable[[int], Row]:
    """Reads a row of a table of pyarrow. most: bytes that it may unfold to; None where all its rows together are fewer."""
    import pyarrow

    def read(number: int) -> Row:
        try:
            row = table.slice(number, 1)
            if most is not None and (size := sum(_unfolded(column) for column in row.columns)) > most:
                raise Broken(f"a row that unfolds to {size:,} bytes, takes at most {most:,}")
            return _mapping(row.to_pylist()[0])
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise Broken(f"not readable: {short(error)}") from error

    return read


def saved(folder: Path) -> list[Path]:
    """The files of a data set that the ``datasets`` library has saved there, in its order; [] for any other folder.

    Errors: UserError for a folder of several splits.
    """
    several, state = folder / "dataset_dict.json", folder / "state.json"
    if several.is_file():
        splits = sorted(place.parent.name for place in folder.glob("*/state.json"))
        raise UserError(f"records.path: {folder} holds several splits, takes one of them: {', '.join(str(folder / one) for one in splits)}")
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return []
    try:
        return [folder / Path(str(one["filename"])).name for one in _mapping(parsed(state.read_bytes()))["_data_files"]]
    except (Broken, KeyError, TypeError) as error:
        raise UserError(f"records.path: {state} names no files of a data set: {short(error)}") from error


def _arrow(file: Path, most: int) -> list[Block]:
    """A shard of a data set that the ``datasets`` library has saved: Arrow's stream format, or its file format."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise UserError("records: arrow files need the package pyarrow, which is not installed") from error

    def opened() -> tuple[int, Callable[[int], Row]]:
        try:
            with pyarrow.memory_map(str(file)) as held:
                is_file = held.read(6) == b"ARROW1"
                held.seek(max(0, held.size() - len(LAST)))
                if not is_file and held.read(len(LAST)) != LAST:  # what reads it takes the end of a batch for the end of them all
                    raise ValueError("it ends before its last batch does")
                held.seek(0)
                table = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(held).read_all()
            table.validate(full=True)
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
            raise UserError(f"records.path: {file} is no arrow file, or a damaged one: {short(error)}") from error
        return table.num_rows, _of_table(table, max(2**29, UNFOLDED * file.stat().st_size))

    return [Block(file.name, opened, str(file))]


def _size(group: Any, schema: Any) -> int:
    """Bytes of a row group once it is read: what it stores, or, where more, its values of a fixed width, and a reference to each text."""
    values = 0
    for number in range(group.num_columns):
        fixed = schema.column(number)
        values += group.column(number).num_values * (WIDTHS.get(fixed.physical_type) or fixed.length)
    return max(group.total_byte_size, values)


def _unfolded(column: Any) -> int:
    """Bytes of the texts that a column's values refer to, each counted as often as it is referred to."""
    import pyarrow
    from pyarrow import compute

    if isinstance(column, pyarrow.ChunkedArray):
        return sum(_unfolded(chunk) for chunk in column.chunks)
    if isinstance(column, pyarrow.DictionaryArray):
        return compute.sum(compute.binary_length(column.dictionary).take(column.indices).cast("int64")).as_py() or 0
    if isinstance(column, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)):
        return _unfolded(column.flatten())
    if isinstance(column, pyarrow.StructArray):
        return sum(_unfolded(part) for part in column.flatten())
    return int(column.nbytes)


def _raised(error: Broken) -> Row:
    raise error


def _shard(file: Path, most: int) -> list[Block]:
    return [Block(file.name, lambda: shard(file, most), str(file))]


def _mapping(row: Any) -> Row:
    if not isinstance(row, dict):
        raise Broken(f"got {type(row).__name__}, takes an object")
    return {str(key): value for key, value in row.items()}


class Placed(NamedTuple):
    """A medium as a row names it, and the file that the row is from."""

    source: Any
    file: str


def placed(row: Mapping[str, Any], source: Any) -> Any:
    """A medium of a row with the row's file, if it was read from one and names the medium by a path."""
    path = source.get("path") if isinstance(source, Mapping) else source
    inside = isinstance(source, Mapping) and source.get("bytes") is not None
    return Placed(source, str(row[FILE])) if FILE in row and isinstance(path, str) and path and not inside else source


def located(source: Any, folder: str | Path | None = None) -> Any:
    """What ``placed`` gave, as media are read: a path that starts at the data file, or in ``folder``, or in the folder of the file's name.

    HPDv2's ``train.json`` names pictures of ``train/``. A path that is nowhere is given as it would be beside the file, never where the
    process happens to work.
    """
    if not isinstance(source, Placed):
        return source
    path = source.source["path"] if isinstance(source.source, Mapping) else source.source
    path = unquote(path.removeprefix("file://")) if path.startswith("file://") else path
    if is_address(path) or path.startswith("data:"):
        return path
    file = Path(source.file)
    folders = [file.parent, *([] if folder is None else [Path(folder)]), file.with_suffix("")]
    return next((str(home / path) for home in folders if is_file(home / path)), str(file.parent / path))


_READERS: dict[str, Callable[[Path, int], list[Block]]] = {
    ".jsonl": _lines, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet, ".arrow": _arrow, ".tar": _shard,
}  # fmt: skip
