"""Where the time and memory of a run's steps went: a figure and a table, of what ``run: {profile: true}`` logged."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmalign.report.plots import Figure, Plot, Series, draw, short, thin
from mmalign.report.read import RunData
from mmalign.runs.profile import table

LINES = 6  # parts of a step that have a line of their own


class Costs(NamedTuple):
    """rows: part, seconds in a step, share of it. words: what the table does not say."""

    rows: list[tuple[str, str, str]]
    words: str


def figure(run: RunData) -> Figure | None:
    """The seconds of the largest parts of every step; None where nothing was measured."""
    parts = table(run.profile)[:LINES]
    if not parts:
        return None
    series = []
    for index, (name, _, _) in enumerate(parts):
        points = [(float(row["step"]), float(row.get(name) or 0.0)) for row in run.profile]
        series.append(Series(name, thin(points), colour=index))
    alt = "; ".join(f"{name} {short(seconds)} s a step" for name, seconds, _ in parts)
    plot = Plot(series, "step", f"Seconds of a step: {alt}", y_word="seconds")
    legend = tuple((one.name, f"s{one.colour}") for one in series)
    return Figure("Where the time goes", "Seconds of every step, by what they went into.", draw(plot), legend)


def costs(run: RunData) -> Costs | None:
    """The mean step of the run in numbers; None where nothing was measured."""
    parts = table(run.profile)
    if not parts:
        return None
    rows = [(name, f"{short(seconds)} s", f"{100 * share:.1f} %") for name, seconds, share in parts]
    whole, processor = _mean(run.profile, "step_seconds"), _mean(run.profile, "processor")
    words = [f"A step takes {short(whole)} s, and {short(processor)} s of processor time."]
    if memory := _largest(run.profile, "memory"):
        words.append(f"The process has had at most {memory / 2**30:.2f} GiB of memory.")
    if memory := _largest(run.profile, "memory_gpu"):
        words.append(f"Its GPU at most {memory / 2**30:.2f} GiB.")
    if any("slowest" in row for row in run.profile):
        counts = [int(row["slowest"]) for row in run.profile if "slowest" in row]
        slowest = max(set(counts), key=counts.count)
        longest, least = _mean(run.profile, "slowest_work"), _mean(run.profile, "least_work")
        words.append(
            f"Times are means over processes. The slowest works {short(longest)} s of a step and the quickest {short(least)} s; process "
            f"{slowest} was the slowest in {counts.count(slowest)} of {len(counts)} steps. The others wait for it, which is part of gather."
        )
    return Costs(rows, " ".join(words))


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else float("nan")


def _largest(rows: list[dict[str, Any]], name: str) -> float:
    return max((float(row.get(name) or 0.0) for row in rows), default=0.0)
