"""Prompts: a list, a text file with one to a line, or JSON lines, whose further columns rewards and judges read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.types import Prompt, UserError


def prompts(path: str, *, key: str = "prompt", limit: int | None = None, files: Sequence[str] = ()) -> list[str | Prompt]:
    """Prompts of a file: ``.txt``, one to a line, empty lines left out; or ``.jsonl``, under ``key``, with its other keys as columns.

    path: the file. key: where a line of JSON has the prompt, a string or a conversation (a list of turns). limit: the first so many.
    files: columns that hold paths relative to the file, or lists of them. What rewards, judges and oracles read of a prompt, such as its
    answer, is a column.

    Errors: UserError with the line's number where a line cannot be read, or for a file without prompts.

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
    if not file.is_file():
        raise UserError(f"prompts.path: no such file: {path}")
    if limit is not None and limit < 1:
        raise UserError(f"prompts.limit: got {limit}, takes 1 or more")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {path} is not readable as UTF-8 text: {error.reason} at byte {error.start}") from error
    found: list[str | Prompt] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if file.suffix != ".jsonl":
            found.append(line.strip())
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get(key), (str, list)):
            raise UserError(f"{path}, line {number}: takes an object with a string, or a conversation, under {key!r}")
        columns = {name: _placed(value, file.parent) if name in files else value for name, value in row.items() if name != key}
        found.append(_prompt(f"{path}, line {number}", row[key], columns))
    if not found:
        raise UserError(f"{path}: got no prompts, takes one to a line")
    return found[:limit]


def _prompt(where: str, content: Any, columns: Mapping[str, Any]) -> str | Prompt:
    try:
        return Prompt(content, columns) if columns else content
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _placed(value: Any, folder: Path) -> Any:
    """A path, or a list of them, from the file's own folder."""
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    return str(folder / value) if isinstance(value, str) else value
