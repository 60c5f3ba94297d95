"""Prompts: a list, a text file with one to a line, or rows, whose further columns rewards and judges read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.data._reading.parsing import is_file
from mmalign.data._reading.tables import FILE, Row, blocks, in_order, located, numbered_lines, placed
from mmalign.data._schemas.columns import IMAGES, VIDEOS, holds_media, low
from mmalign.data._schemas.turns import turns_of
from mmalign.media import Broken, is_address
from mmalign.types import Prompt, UserError

ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
BINARY = (".tar", ".gz", ".zip", ".xlsx", ".pdf", ".png", ".jpg")


def prompts(path: str, *, key: str = "prompt", limit: Count | None = None, files: Sequence[str] = ()) -> list[str | Prompt]:
    """Prompts of a file: ``.txt``, one to a line, empty lines left out; or rows (JSON lines, JSON, CSV, TSV, parquet, arrow), whose other
    keys are columns.

    path: the file. key: where a row has the prompt, a string or a conversation (a list of turns). limit: the first so many.
    files: columns that hold paths relative to the file, or lists of them. What rewards, judges and oracles read of a prompt, such as its
    answer, is a column.

    A picture or a video in a column is shown to no model; that is said where ``files`` does not name it for what reads it.

    Errors: UserError with the row's place where a row cannot be read, or for a file without prompts.

    Examples:
        >>> import tempfile
        >>> from mmalign.types import columns_of, contents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "prompts.jsonl"
        ...     _ = file.write_text('{"prompt": "1 + 1 =", "answer": "2"}\\n{"prompt": "2 + 2 ="}\\n', encoding="utf-8")
        ...     records = prompts(str(file))
        >>> contents(records), columns_of(records)
        (['1 + 1 =', '2 + 2 ='], {'answer': ['2', None]})
    """
    file = Path(path)
    if not is_file(file):
        raise UserError(f"prompts.path: no such file: {path[:240]}")
    if limit is not None and limit < 1:
        raise UserError(f"prompts.limit: got {limit}, takes 1 or more")
    kind = file.suffix.lower()
    if kind in BINARY:
        raise UserError(f"prompts.path: got {file.name}, takes text, one prompt to a line, or {', '.join(ROWS)}")
    listed = list(islice(_rows(file, key, files) if kind in ROWS else _lines(file), limit))
    if not listed:
        raise UserError(f"{path}: got no prompts, takes one to a line")
    return listed


def _lines(file: Path) -> Iterator[str | Prompt]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {file} is not readable as UTF-8 text: {error.reason} at byte {error.start}") from error
    yield from (line.strip() for line in text.split("\n") if line.strip())


def _rows(file: Path, key: str, files: Sequence[str]) -> Iterator[str | Prompt]:
    lines, said = file.suffix.lower() == ".jsonl", set[str]()
    for number, line in numbered_lines(file) if lines else ((number, row) for number, _, row in in_order(blocks(str(file)), seed=None)):
        where = f"{file}, {'line' if lines else 'row'} {number}"
        if isinstance(line, Broken):
            raise UserError(f"{where}: {line}")
        row = {**line, FILE: str(file)}
        if not isinstance(row.get(key), (str, list)):
            raise UserError(f"{where}: takes an object with a string, or a conversation, under {key!r}")
        columns = {name: value for name, value in row.items() if name not in (key, FILE)}
        for name in columns.keys() - said - {*files}:
            if low(name) in (*IMAGES, *VIDEOS) and holds_media(columns[name]):
                said.add(name)
                shown = f"the model is not shown column {name!r}; takes picture_prompts, or files: [{name}] where rewards alone read it"
                warnings.warn(f"prompts: {file.name}: {shown}", stacklevel=4)
        yield _prompt(
            where,
            _content(row, key, where),
            {name: _placed(value, file.parent) if name in files else value for name, value in columns.items()},
        )


def _prompt(where: str, content: Any, columns: Mapping[str, Any]) -> str | Prompt:
    try:
        _unicode(content)
        return Prompt(content, columns) if columns else content
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _content(row: Row, key: str, where: str) -> Any:
    """A text, or turns as everybody else reads them: roles by their usual names, paths of media from the file's own folder."""
    if isinstance(row[key], str):
        return row[key]
    try:
        turns = turns_of(row[key], key)
        return [{**turn, "content": _parts(row, turn["content"])} for turn in turns]
    except Broken as error:
        raise UserError(f"{where}: {error}") from error


def _parts(row: Row, content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else _medium(part["type"], located(placed(row, part["source"]))) for part in content]


def _medium(kind: str, source: Any) -> dict[str, Any]:
    """A part that names its medium as ``conversations`` reads it."""
    content = source.get("bytes") if isinstance(source, Mapping) else source
    if isinstance(content, str):
        return {"type": kind, "url" if is_address(content) else "path": content}
    if content is None:
        raise Broken(f"got a part {kind} that names no {kind}")
    return {"type": kind, "bytes": content}


def _unicode(content: Any) -> None:
    """Errors: UserError for half a letter (a lone surrogate), which no tokenizer takes."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"a prompt that is not Unicode: {error.reason}") from error


def _placed(value: Any, folder: Path) -> Any:
    """A path, or a list of them, from the file's own folder."""
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    return str(folder / value) if isinstance(value, str) else value
