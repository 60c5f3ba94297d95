"""The pixels of a run's samples beside those that it began with: a figure, a table, and what is said at the top."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmalign.report.plots import COLOURS, Figure, Plot, Rule, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.pixels import LINE, Shift, curves, distance

TITLE = "Pixels of the samples"


def figure(run: RunData) -> Figure | None:
    """How far every statistic has moved, in deviations of the base's samples; None where none was evaluated."""
    series = []
    for number, (name, means) in enumerate(curves(run.evals).items()):
        base = means[0]
        points = [(float(mean.step), distance(base, mean)) for mean in means]
        bands = [0.0, *(math.hypot(mean.error, base.error) / base.unit for mean in means[1:])]
        words = [f"{short(mean.value)} at step {mean.step}" for mean in means]
        dashed = number >= COLOURS
        series.append(Series(_plain(name), points, dashed, marks=True, bands=bands, words=words, colour=number))
    if not series:
        return None
    ends = "; ".join(f"{one.name} moved by {short(one.points[-1][1])}" for one in series)
    line = f"{LINE:g} deviations"
    plot = Plot(series, "step", f"{TITLE}: {ends}", (Rule(LINE, line), Rule(-LINE, line)), y_word="deviations")
    note = "Means over an evaluation's samples, from those of the first (0), in standard deviations among the first one's samples."
    legend = tuple((one.name, f"s{one.colour % COLOURS}{' dashed' if one.dashed else ''}") for one in series)
    return Figure(TITLE, f"{note} What ends beyond a line is said at the top. Bands: one standard error.", draw(plot), legend)


def table(run: RunData) -> list[tuple[str, str]]:
    """Every statistic, before and after in words; empty where fewer than two evaluations have any."""
    rows = []
    for name, means in curves(run.evals).items():
        first, last = means[0], means[-1]
        if first is not last:
            moved = f"{distance(first, last):+.1f}".replace("-", "\N{MINUS SIGN}")
            rows.append((_plain(name), f"{short(first.value)} \N{RIGHTWARDS ARROW} {short(last.value)} ({moved})"))
    return rows


def headline(shifts: Sequence[Shift]) -> str:
    """``brightness fell by 6.2 deviations since step 14, and 2 other statistics moved``; "" where nothing has moved."""
    if not shifts:
        return ""
    first, others = shifts[0], shifts[1:]
    way = "rose" if first.distance > 0 else "fell"
    several = f"{len(others)} other statistics" if len(others) > 1 else "".join(_plain(shift.name) for shift in others)
    too = f", and {several} moved" if others else ""
    return f"{_plain(first.name)} {way} by {abs(first.distance):.1f} deviations since step {first.step}{too}"


def _plain(name: str) -> str:
    return name.replace("_", " ")
