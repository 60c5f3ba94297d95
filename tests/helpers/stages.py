"""Commands for stages of rounds that take no time: each writes a file, and remembers what it was called with."""

from __future__ import annotations

import json
from pathlib import Path

from mmalign.types import UserError

CALLS: list[str] = []


def write(*, out: str, words: list[str] | None = None, source: str | None = None, sources: list[str] | None = None) -> dict[str, int]:
    """Writes the words, and those of other files before them; counts them. As other commands it takes no file that is there."""
    CALLS.append(out)
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    files = [*([source] if source else []), *(sources or [])]
    said = [word for file in files for word in json.loads(Path(file).read_text())] + (words or [])
    if "wrong" in said:
        raise UserError("words: got 'wrong', takes others")
    Path(out).write_text(json.dumps(said))
    return {"words": len(said)}
