"""Prompts: a list, a text file with one to a line, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from mmalign.types import UserError


def prompts(path: str, *, key: str = "prompt", limit: int | None = None) -> list[str]:
    """Prompts of a file: ``.txt``, one to a line, empty lines left out; or ``.jsonl``, under ``key``.

    limit: the first so many. Errors: UserError with the line's number where a line cannot be read, or for a file without prompts.
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
    found: list[str] = []
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
        if not isinstance(row, dict) or not isinstance(row.get(key), str):
            raise UserError(f"{path}, line {number}: takes an object with a string under {key!r}")
        found.append(row[key])
    if not found:
        raise UserError(f"{path}: got no prompts, takes one to a line")
    return found[:limit]
