"""Pairs of a file that are kept by how far apart their scores are: the easy and the hard ones, each in a file of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import NotNegative
from mmalign.distributed.team import joined
from mmalign.files import write_text
from mmalign.types import UserError

__all__ = ["filter_pairs"]

SCORES = ("score_chosen", "score_rejected")


def filter_pairs(path: str, *, out: str, least_gap: NotNegative | None = None, most_gap: NotNegative | None = None) -> dict[str, int]:
    """Writes the pairs of a file whose scores are so far apart, as they are and in their order; returns counts.

    Args:
        path: JSON lines as ``make_pairs`` writes them, with ``score_chosen`` and ``score_rejected``.
        out: the file; it appears whole or not at all. ``prompts`` reads it too, for methods that answer themselves.
        least_gap: kept are pairs with ``|score_chosen - score_rejected| > least_gap``, the easy ones of Mixed Preference Optimization.
        most_gap: kept are pairs with ``|score_chosen - score_rejected| <= most_gap``, the hard ones.

    With the same number in two stages every pair is in one of the two files. Counts: ``pairs`` (kept), ``left_out``.

    Paper: Mixed Preference Optimization: Reinforcement Learning with Data Selection and Better Reference Model, arXiv 2403.19443.

    Errors: UserError for a file that is there already or is not, no bound, a line without scores, and where no pair is left.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    if least_gap is None and most_gap is None:
        raise UserError("filter_pairs: got neither least_gap nor most_gap, takes one or both")
    lines = [line for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
    gaps = [_gap(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    low, high = -math.inf if least_gap is None else least_gap, math.inf if most_gap is None else most_gap
    kept = [line for line, gap in zip(lines, gaps, strict=True) if low < gap <= high]
    if not kept:
        apart = f"{min(gaps):g} to {max(gaps):g} apart" if gaps else "none"
        raise UserError(f"filter_pairs: none of {len(lines)} pairs is left (their scores are {apart}); takes other gaps")
    if joined().main:
        write_text(Path(out), "".join(f"{line}\n" for line in kept))
    joined().tell("written")
    return {"pairs": len(kept), "left_out": len(lines) - len(kept)}


def _gap(line: str, where: str) -> float:
    try:
        row: Any = json.loads(line)
        better, worse = (float(row[name]) for name in SCORES)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{where}: takes an object with numbers under {' and '.join(SCORES)}") from error
    if not math.isfinite(better - worse):
        raise UserError(f"{where}: its scores are {better} and {worse}, takes finite ones")
    return abs(better - worse)
