"""Answers to the items of a benchmark, kept in a file as they come, so that an interrupted command goes on behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.distributed.jobs import in_turn
from mmalign.distributed.team import Team
from mmalign.files import finite, write_text
from mmalign.runs.progress import Interrupt, Progress
from mmalign.types import UserError


def resumed(
    file: Path, ids: Sequence[str], make: Callable[[list[int]], list[Any]], *, field: str, head: Mapping[str, Any], batch: int, team: Team
) -> dict[str, Any]:
    """id -> what ``make`` says of it: from the file as far as it goes, and then batch by batch, which the file grows by.

    make: places among ``ids`` -> what JSON holds, one for each. field: what that is called in a line of the file. head: the first line:
    what all of it depends on.

    Errors: UserError for a file with another head, and one with an id that is not asked. Ctrl-C keeps what there is.
    """
    replies: dict[str, Any] = team.tell(_continued(file, head, set(ids), field) if team.main else None)[0]
    remaining = [place for place, name in enumerate(ids) if name not in replies]
    batches = [remaining[start : start + batch] for start in range(0, len(remaining), batch)]
    with (
        Progress(len(ids), start=len(replies), every=50 * batch, quiet=not team.main) as progress,
        Interrupt(quiet=not team.main) as interrupt,
    ):
        for number, (some, values) in enumerate(in_turn(team, batches, make), start=1):
            lines = [{"id": ids[place], field: value} for place, value in zip(some, values, strict=True)]
            if team.main:
                with open(file, "a", encoding="utf-8") as log:
                    log.writelines(json.dumps(finite(line), ensure_ascii=False) + "\n" for line in lines)
            replies.update({line["id"]: line[field] for line in lines})
            progress.update(len(replies), {})
            if (number % team.size == 0 or number == len(batches)) and team.any(interrupt.interrupted):
                raise KeyboardInterrupt
    return replies


def _continued(file: Path, head: Mapping[str, Any], ids: set[str], field: str) -> dict[str, Any]:
    """What is there already; a file that does not begin with ``head`` is refused, and a torn last line dropped."""
    plain_head = json.loads(json.dumps(head))
    if not file.is_file():
        write_text(file, json.dumps(plain_head, ensure_ascii=False) + "\n")
        return {}
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # empty, or torn by a crash
            continue
    if not rows or rows[0] != plain_head:
        differs = [key for key in plain_head if not rows or rows[0].get(key) != plain_head[key]]
        raise UserError(f"{file}: holds {field}s with another {', '.join(differs)}; give another --out, or delete it")
    if other := next((row["id"] for row in rows[1:] if row["id"] not in ids), None):
        raise UserError(f"{file}: has {other}, which is not asked; give another --out, or delete it")
    if lines[-1]:
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {row["id"]: row[field] for row in rows[1:]}
