"""The page of a sweep: its runs in a table, means over seeds, and what a distance from the reference bought, with the fitted law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.report.plots import COLOURS, Figure, Plot, Series, draw, short
from mmalign.report.templates import template

MISSING = "\N{EN DASH}"


def page(table: Mapping[str, Any]) -> str:
    """One self-contained page of HTML. table: what ``table.json`` of a sweep holds."""
    from markupsafe import Markup

    drawn = [curve(name, groups, judge=name in table["judges"]) for name, groups in table["laws"].items()]
    shown = [*(name for name in table["columns"] if name != "status"), "status"]
    means = [*(axis for axis in table["axes"] if axis != "run.seed"), *table["judges"], *table["rewards"], "kl", "runs"]
    return template("sweep.html").render(
        name=table["name"],
        headline=headline(table),
        columns=shown,
        rows=[{**row, "cells": [_cell(row, name) for name in shown]} for row in table["rows"]],
        mean_columns=means,
        means=[[_mean(row, name) for name in means] for row in table["means"]],
        figures=[(figure, Markup(figure.svg)) for figure in drawn if figure.svg],
        undrawn=[figure.note for figure in drawn if not figure.svg],
        laws=laws(table),
        saturations=saturations(table),
    )


def saturations(table: Mapping[str, Any]) -> list[list[str]]:
    """A line for each law of data: what of, its plateau, how many records are enough, how well it fits."""
    numbers = ("plateau", "drop", "enough", "explained")
    return [
        [row["number"], row["axis"], row["group"], *(_number(row[name]) for name in numbers), str(row["points"])]
        for row in table.get("saturations", [])
    ]


def headline(table: Mapping[str, Any]) -> str:
    """``12 runs, 1 failed; gold is best in ipo-beta0.1-seed0: .62 at 3.1 nats``."""
    rows, sorted_by = table["rows"], table["sorted_by"]
    failed = sum(row["status"] == "failed" for row in rows)
    words = f"{len(rows)} runs" + (f", {failed} failed" if failed else "")
    known = [row for row in rows if isinstance(row.get(sorted_by), float)]
    if not known:
        return f"{words}; none has a number of {sorted_by}"
    best = max(known, key=lambda row: float(row[sorted_by]))
    at = f" at {short(best['kl'])} nats" if best["kl"] is not None else ""
    return f"{words}; {sorted_by} ends highest in {best['name']}: {short(best[sorted_by])}{at}"


def curve(name: str, groups: Mapping[str, Mapping[str, Any]], *, judge: bool) -> Figure:
    """The gain of one number over sqrt(KL): a faint line for each run, a mark for each evaluation, and each group's law."""
    title = f"{name}: gain against the square root of the KL"
    series, legend = list[Series](), list[tuple[str, str]]()
    for number, (group, found) in enumerate(groups.items()):
        colour = number % COLOURS
        for run, path in found["paths"].items():
            words = [f"{run}: {short(gain)} at {short(d * d)} nats" for d, gain in path]
            series.append(Series(run, [(d, gain) for d, gain in path], marks=True, words=words, colour=colour, faint=True))
        if found["curve"]:
            series.append(Series(f"law of {group}", [(d, gain) for d, gain in found["curve"]], colour=colour, dashed=not judge))
        legend.append((group, f"s{colour}"))
    if not series:
        return Figure(title, f"{name}: no run has two evaluations with a KL, which takes a policy of tokens or of random denoising steps.")
    alt = f"{title}: " + "; ".join(f"{group} reaches {short(_top(found))}" for group, found in groups.items())
    plot = Plot(series, "sqrt(KL to the reference), sqrt(nats)", alt, steps=False, y_word=f"{name}, less its first evaluation")
    note = "Thin lines are runs, each mark an evaluation; thick lines are the fitted law." + (
        " A judge: never trained on." if judge else ""
    )
    return Figure(title, note, draw(plot), tuple(legend))


def laws(table: Mapping[str, Any]) -> list[list[str]]:
    """A row for each number and group: alpha, beta with intervals, the KL of the peak, and what is to be said of it."""
    rows = []
    for name, groups in table["laws"].items():
        for group, found in groups.items():
            law = found["law"]
            said = "turns: more KL costs" if law["turns"] else "not known to turn inside of what was measured"
            peak = _interval(law["peak"]) if law["turns"] else "none found"
            counts = f"{law['points']}, of {law['runs']} runs"
            rows.append([name, group, _interval(law["alpha"]), _interval(law["beta"]), peak, _number(law["explained"]), counts, said])
    return rows


def _top(found: Mapping[str, Any]) -> float:
    return max((gain for path in found["paths"].values() for _, gain in path), default=0.0)


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


def _number(value: Any) -> str:
    return short(value) if _known(value) else MISSING


def _interval(one: Mapping[str, Any]) -> str:
    """``1.2 (0.9 to 1.5)``; without an interval the number alone."""
    if not _known(one["low"]):
        return _number(one["value"])
    return f"{_number(one['value'])} ({_number(one['low'])} to {_number(one['high'])})"


def _cell(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """What a cell shows, and what it is sorted by."""
    value = row.get(name)
    if not isinstance(value, float):
        return ("" if value is None else str(value)) or MISSING, "" if value is None else str(value)
    error, at = row.get(f"{name} se"), row.get(f"{name} kl")
    of = f" \N{PLUS-MINUS SIGN} {short(error)}" if isinstance(error, float) else ""
    where = f" at {short(at)} nats" if isinstance(at, float) else ""
    return f"{short(value)}{of}{where}", repr(value)


def _mean(row: Mapping[str, Any], name: str) -> str:
    if name == "runs":
        return f"{row['runs']} of {row['of']}"
    value, deviation = row[name], row.get(f"{name} sd")
    if not isinstance(value, float):
        return MISSING if value is None else str(value)
    return short(value) + (f" \N{PLUS-MINUS SIGN} {short(deviation)}" if isinstance(deviation, float) else "")


def terminal(table: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]], list[int]]:
    """Columns, rows and the numbers of those that failed, for a terminal."""
    columns = ["run", *(name for name in table["columns"] if name not in table["axes"])]
    rows = [[row["name"], *(_cell(row, name)[0] for name in columns[1:])] for row in table["rows"]]
    for row, cells in zip(table["rows"], rows, strict=True):
        cells[columns.index("status")] += f": {row['why']}" if row["why"] else ""
    return columns, rows, [number for number, row in enumerate(table["rows"]) if row["status"] == "failed"]
