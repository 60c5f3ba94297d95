"""``metrics.jsonl``: read, and cut where a run goes on; and the results of benchmarks beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmalign.files import write_bytes

MOST_STEPS, LARGEST = 10**12, 1e150  # beyond these a line is damaged; squares of what is below are still finite


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
            row = _row(json.loads(line))
        except (ValueError, RecursionError):  # torn by a crash; UnicodeDecodeError is one of these too
            row = None
        parsed.append((line, row, f"{path.name}: line {number} is torn, dropped" if row is None else ""))
    return parsed


def _row(value: Any) -> dict[str, Any] | None:
    """A line's step, phase and numbers; what is no number is left out, and what is no row at all is None."""
    if not isinstance(value, dict) or not isinstance(value.get("phase"), str):
        return None
    step = value.get("step")
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < MOST_STEPS:
        return None
    numbers = {key: number for key, number in value.items() if number is None or is_number(number)}
    return {**numbers, "step": step, "phase": value["phase"]}


def is_number(value: Any) -> bool:
    """Whether something that was read is a number that can be shown."""
    return isinstance(value, (int, float)) and abs(value) < LARGEST


def read_benchmarks(folder: Path) -> tuple[list[tuple[str, dict[str, tuple[float, ...]]]], list[str]]:
    """What ``mmalign eval`` left under ``evaluations/`` of a run: (its name, number -> value, low and high); and notes on damaged files."""
    benchmarks, notes = [], []
    for file in sorted((folder / "evaluations").glob("*/results.json")):
        try:
            values = json.loads(file.read_bytes())["values"]
            rows = {
                str(name): tuple(float(value[key]) for key in ("value", "low", "high")) for name, value in values.items() if _whole(value)
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):  # torn, or not of ours
            notes.append(f"evaluations/{file.parent.name}/results.json could not be read")
            continue
        benchmarks.append((file.parent.name, rows))
    return benchmarks, notes


def _whole(value: Any) -> bool:
    return all(is_number(value[key]) for key in ("value", "low", "high"))
