"""A run of rounds on its page: what each stage made, and the numbers over rounds that are neither rewards nor judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmalign.report.plots import Figure, Plot, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import curve
from mmalign.runs.rounds import Entry, read_entries
from mmalign.types import UserError

LINES = 6  # of one figure
APART = ("_se", "_missing")


class Made(NamedTuple):
    """A row of the table. what: its numbers in words. link: what it made, from the page; a run's own page."""

    round: int
    stage: str
    use: str
    what: str
    seconds: str
    link: str


def made(run: RunData) -> list[Made]:
    """What the stages made, in order; nothing for a run that has none, and for a state that cannot be read."""
    rows = []
    for entry in _entries(run):
        names = [*entry.judges, *entry.rewards] or [*entry.after]
        moved = [
            f"{name} {short(entry.before[name])} to {short(entry.after[name])}" for name in names if _both(entry.before, entry.after, name)
        ]
        counted = [f"{'missing' if value is None else short(float(value))} {name}" for name, value in entry.counts.items()]
        page = f"{entry.product}/report.html" if entry.product and (run.path / entry.product / "report.html").is_file() else entry.product
        rows.append(Made(entry.round, entry.stage, entry.use, ", ".join([*counted, *moved]), f"{short(entry.seconds)} s", page or ""))
    return rows


def _both(before: Mapping[str, float | None], after: Mapping[str, float | None], name: str) -> bool:
    return before.get(name) is not None and after.get(name) is not None


def figures(run: RunData) -> list[Figure]:
    """What was evaluated besides rewards and judges (KL, lengths, violations), and what commands counted, over rounds."""
    evaluated = dict.fromkeys(name for row in run.evals for name in row)
    besides = [
        name for name in evaluated if name not in ("step", *run.rewards, *run.judges, "seconds", "phase") and not name.endswith(APART)
    ]
    counted = dict.fromkeys(f"{row.stage}/{name}" for row in _entries(run) for name in row.counts)
    drawn = [
        *_split("Evaluated besides", run.evals, besides),
        *_split("What commands counted", run.train, list(counted)),
    ]
    return [figure for figure in drawn if figure.svg]


def _entries(run: RunData) -> list[Entry]:
    try:
        return read_entries(run.path)
    except UserError:
        return []


def _split(title: str, rows: Sequence[dict[str, Any]], names: list[str]) -> list[Figure]:
    return [_figure(title, rows, names[start : start + LINES]) for start in range(0, len(names), LINES)]


def _figure(title: str, rows: Sequence[dict[str, Any]], names: list[str]) -> Figure:
    """Each from its start in units of its largest change, since their scales are of all kinds."""
    series = []
    for index, name in enumerate(names):
        points = curve(rows, name)
        if not points:
            continue
        origin = points[0].value
        unit = max(abs(point.value - origin) for point in points) or 1.0
        line = [(float(point.step), (point.value - origin) / unit) for point in points]
        series.append(Series(name, line, marks=True, words=[f"{short(p.value)} in round {p.step}" for p in points], colour=index))
    if not series:
        return Figure(title, "No number was logged.")
    ends = "; ".join(f"{one.name}: {one.words[0]}, {one.words[-1]}" for one in series)
    legend = tuple((one.name, f"s{one.colour}") for one in series)
    return Figure(title, f"Each from its start (0) in units of its largest change. {ends}.", draw(Plot(series, "round", ends)), legend)
