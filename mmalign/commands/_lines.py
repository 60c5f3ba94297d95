"""Files of JSON lines that commands read and write: whole, or not at all."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.distributed.folder import refuse_elsewhere
from mmalign.distributed.team import Team
from mmalign.types import UserError

Line = dict[str, Any]


def refuse_there(out: str) -> None:
    """UserError for a file that is there already."""
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")


def read(path: str, *needed: str) -> list[Line]:
    """The objects of a file of JSON lines, in their order.

    needed: keys that each of them has. Errors: UserError with the line's place for what is no object, and one without such a key.
    """
    if not Path(path).is_file():
        raise UserError(f"path: no such file: {path[:240]}")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: no JSON") from error
        if not isinstance(row, dict) or (lacks := [key for key in needed if key not in row]):
            missing = "no object" if not isinstance(row, dict) else f"has no {lacks[0]}"
            raise UserError(f"{path}, line {number}: {missing}; takes an object with {', '.join(needed)}")
        rows.append(row)
    if not rows:
        raise UserError(f"path: {path} holds nothing")
    return rows


def written(out: Path, lines: Iterator[Line], team: Team) -> None:
    """What the main process writes; the others make the lines with it."""
    if team.main:
        out.parent.mkdir(parents=True, exist_ok=True)
    refuse_elsewhere(team, out.parent, "out")
    if not team.main:
        deque(lines, maxlen=0)
        return
    half = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with open(half, "w", encoding="utf-8") as file:
            for line in lines:
                file.write(_json(line) + "\n")
        os.replace(half, out)
    finally:
        half.unlink(missing_ok=True)


def _json(line: Line) -> str:
    try:
        return json.dumps(line, ensure_ascii=False)
    except TypeError as error:
        raise UserError(f"prompts: {error}; takes texts, and media by their paths") from error
