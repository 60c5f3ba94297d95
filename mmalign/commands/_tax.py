"""What training gained by its own judges and what it cost elsewhere, from the files of a run: numbers before and after, and lengths."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.evaluation.consistency import length_ratio
from mmalign.evaluation.intervals import Interval
from mmalign.report.read import RunData
from mmalign.runs.metrics import is_number
from mmalign.runs.overoptimisation import curve
from mmalign.types import UserError

BEFORE = "ref"
"""The set of parameters that a run began with, as ``mmalign eval RUN --set ref`` asks it."""
LENGTH = "length ratio"


class Change(NamedTuple):
    """A number before training and after it. error: standard error of the change, NaN where it is not known. own: of what the run was
    trained for. less: less of it is better."""

    name: str
    before: float
    after: float
    error: float
    own: bool = False
    less: bool = False

    @property
    def verdict(self) -> str:
        """In a word: beyond two standard errors, or not."""
        change = self.after - self.before
        if math.isnan(change) or math.isnan(self.error):
            return "not known"
        if abs(change) <= 2 * self.error:
            return "no difference"
        return "gained" if (change < 0) == self.less else "lost"

    def shown(self) -> str:
        """``+0.300 ± 0.050 gained``; own numbers say so."""
        error = "" if math.isnan(self.error) else f" ± {self.error:.3f}"
        return f"{'own ' if self.own else ''}{self.after - self.before:+.3f}{error} {self.verdict}"


def of_suites(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of ``mmalign eval`` as (of what the run came to, of what it began with); of each suite the first of either kind."""
    kept: dict[tuple[str, bool], Path] = {}
    for file in files:
        results = read_results(file)
        kept.setdefault((str(results["suite"]), results.get("using") == BEFORE), file)
    return [file for (_, before), file in kept.items() if not before], [file for (_, before), file in kept.items() if before]


def read_results(file: Path) -> dict[str, Any]:
    """What ``mmalign eval`` wrote. Errors: UserError for anything else."""
    try:
        results = json.loads(file.read_bytes())
        if not isinstance(results["suite"], str) or not all("value" in value for value in results["values"].values()):
            raise TypeError("suite or values")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"table: {file} is not what mmalign eval writes ({type(error).__name__})") from error
    return dict(results)


def changes(run: RunData, after: Sequence[Path], before: Sequence[Path]) -> list[Change]:
    """Of the rewards, judges and suites of a run; own: the rewards that it was trained on, or, without any, its first judge.

    Rewards and judges: from the first evaluation to the one that the summary is of (the best, where the run kept it, or the last).
    Suites: from ``--set ref`` to what was asked without. Errors of both ends are taken to be independent, which for the same questions is
    more than they are.
    """
    found = []
    best = run.summary.get("best_step")
    own = run.rewards or run.judges[:1]
    for kind, names in (("reward", run.rewards), ("judge", run.judges)):
        for name in names:
            points = curve(run.evals, name)
            last = next((point for point in points if point.step == best), points[-1] if points else None)
            if len(points) > 1 and last is not None:
                error = math.hypot(*(math.nan if point.error is None else point.error for point in (points[0], last)))
                found.append(Change(f"{kind} {name}", points[0].value, last.value, error, name in own))
    ends = {str(one["suite"]): [one] for one in map(read_results, after)}
    for one in map(read_results, before):
        ends.setdefault(str(one["suite"]), []).append(one)
    for suite, both in ends.items():
        if len(both) == 2:
            new, old = (one["values"] for one in both)
            pairs = [
                (name, old[name], new[name]) for name in new if name in old and all(is_number(one[name]["value"]) for one in (old, new))
            ]
            found += [Change(f"{suite}: {name}", a["value"], b["value"], math.hypot(_error(a), _error(b))) for name, a, b in pairs]
    return found


def lengths(run: RunData, after: Sequence[Path], before: Sequence[Path]) -> dict[str, dict[str, Interval]]:
    """``length ratio`` -> characters of answers after over those before, mean over mean, and the share that is ``longer``.

    Of the answers of a run's evaluations (the first, and the one that the summary is of), and, as ``SUITE: length ratio``, of those that
    suites had. Of the questions that both answered; none where there are none.
    """
    pairs = list[tuple[str, Mapping[Any, str], Mapping[Any, str]]]()
    steps = {step: {(place, row["prompt"]): row["answer"] for place, row in enumerate(rows)} for step, rows in run.answers}
    if len(steps) > 1:
        best = run.summary.get("best_step")
        pairs.append((LENGTH, steps[best if best in steps else max(steps)], steps[min(steps)]))
    old = {str(read_results(file)["suite"]): file for file in before}
    for file in after:
        suite = str(read_results(file)["suite"])
        if suite in old:
            pairs.append((f"{suite}: {LENGTH}", _answers(file), _answers(old[suite])))
    found = {}
    for name, new, first in pairs:
        both = [question for question in new if question in first]
        if both:
            found[name] = dict(length_ratio([len(new[one]) for one in both], [len(first[one]) for one in both]).values)
    return found


def _answers(results: Path) -> dict[Any, str]:
    """id -> answer of the questions that were answered in words, beside a file of results; none where it has no such rows."""
    try:
        rows = [json.loads(line) for line in (results.parent / "rows.jsonl").read_text(encoding="utf-8").split("\n") if line.strip()]
        return {str(row["id"]): row["answer"] for row in rows if isinstance(row.get("answer"), str)}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _error(value: Mapping[str, Any]) -> float:
    error = value.get("error")
    return float(error) if is_number(error) else math.nan  # type: ignore[arg-type]
