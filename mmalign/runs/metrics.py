"""``metrics.jsonl``: read, and cut where a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmalign.files import write_bytes


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of ``metrics.jsonl`` in order, and notes on lines that could not be read (a crash tears the last one)."""
    rows, notes = [], []
    for _, row, note in _metric_lines(path):
        if row is None:
            notes.append(note)
        else:
            rows.append(row)
    return rows, notes


def truncate_metrics(path: Path, step: int) -> list[str]:
    """Cuts the rows after ``step`` (the kept lines stay byte for byte); returns notes on torn lines that were dropped."""
    kept, notes = [], []
    for line, row, note in _metric_lines(path):
        if row is None:
            notes.append(note)
        elif row["step"] <= step:
            kept.append(line + b"\n")
    write_bytes(path, b"".join(kept))
    return notes


def _metric_lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None, str]]:
    if not path.is_file():
        return []
    parsed: list[tuple[bytes, dict[str, Any] | None, str]] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:  # torn by a crash; UnicodeDecodeError is one of these too
            row = None
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and "phase" in row):
            row = None
        parsed.append((line, row, f"{path.name}: line {number} is torn, dropped" if row is None else ""))
    return parsed
