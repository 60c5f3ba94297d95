"""Several runs beside each other: what each came to, where their configs differ, their curves in one plot each, their samples by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.files import flat
from mmalign.report.figures import HELD_OUT
from mmalign.report.page import Picture, picture, readout
from mmalign.report.plots import COLOURS, Figure, Plot, Series, draw, short, thin
from mmalign.report.read import RunData
from mmalign.report.templates import template
from mmalign.report.verdict import describe, state
from mmalign.runs.overoptimisation import Point, curve, overoptimised
from mmalign.runs.pixels import in_words, shifts

TRAINED = {  # columns of a training step -> title, note
    "reward": ("Training reward", "Mean over each rollout."),
    "kl": ("KL to the reference", "Nats a trajectory, of training rollouts."),
    "loss": ("Loss", "Of each update; methods' losses are no measure of each other."),
    "margin": ("Margin", "By how much the chosen output's score is ahead of the rejected one's."),
    "accuracy": ("Accuracy", "Share of pairs whose chosen output is ahead."),
    "entropy": ("Entropy", "Nats a step."),
}
EVALUATED = ("kl", "spread_ratio", "length")
APART = ("run.name", "run.folder")  # of any two runs


@dataclass(frozen=True)
class Beside:
    """One run of several. name: told apart from the others. cells: of the table, by column. alarms: in words. frames: its grids by step.
    trackers: name -> address of its page there."""

    name: str
    colour: int
    state: str
    cells: dict[str, str]
    alarms: list[str]
    frames: list[Picture]
    trackers: dict[str, str]


def comparison(runs: Sequence[RunData], *, title: str = "") -> str:
    """The whole page as one string of HTML, which needs nothing beside itself. runs: two or more; one is compared with nobody.

    Numbers are those of evaluations, with their standard errors where these were logged; a run without one has no line there.
    """
    from markupsafe import Markup

    names = told_apart([run.path for run in runs])
    notes = [f"{name}: {note}" for name, run in zip(names, runs, strict=True) for note in run.notes]
    beside = [_beside(run, name, number % COLOURS, notes) for number, (run, name) in enumerate(zip(runs, names, strict=True))]
    return template("comparison.html").render(
        title=title or f"{len(runs)} runs",
        runs=beside,
        columns=list(dict.fromkeys(column for one in beside for column in one.cells)),
        differences=differences([run.config for run in runs]),
        figures=[(figure, Markup(figure.svg)) for figure in figures(runs, names)],
        steps=sorted({frame.step for one in beside for frame in one.frames if frame.step is not None}),
        prompts=next((run.prompts for run in runs if run.prompts), []),
        notes=notes,
    )


def told_apart(paths: Sequence[Path]) -> list[str]:
    """What runs are called: the names of their folders, with as much of what is above them as tells them apart."""
    wholes = [path.resolve().parts for path in paths]
    for length in range(1, max((len(parts) for parts in wholes), default=1) + 1):
        names = ["/".join(parts[-length:]) for parts in wholes]
        if len(set(names)) == len(names):
            break
    return names if wholes else []


def _beside(run: RunData, name: str, colour: int, notes: list[str]) -> Beside:
    findings = overoptimised(run.evals, rewards=run.rewards, judges=run.judges)
    alarms = [*(describe(finding) for finding in findings), *(in_words(shift) for shift in shifts(run.evals))]
    drawn = [picture(path, step, readout(run, step), notes=notes) for step, path in run.frames]
    cells = {}
    for column in _evaluated([run]):
        if points := curve(run.evals, column):
            best = max(points, key=lambda point: point.value)
            cells[column] = f"{_said(points[0])} \N{RIGHTWARDS ARROW} {_said(points[-1])}"
            cells[column] += f" (best {short(best.value)} at step {best.step})" if best.value > points[-1].value else ""
    return Beside(name, colour, state(run), cells, alarms, [frame for frame in drawn if frame is not None], run.trackers)


def _said(point: Point) -> str:
    return short(point.value) if point.error is None else f"{short(point.value)} ± {short(point.error)}"


def _evaluated(runs: Sequence[RunData]) -> list[str]:
    """The numbers of evaluations that are worth a column: rewards, judges, and a few that all runs may have."""
    named = dict.fromkeys(name for run in runs for name in [*run.judges, *run.rewards])
    logged = {name for run in runs for row in run.evals for name in row}
    held_out = sorted(name for name in logged if name.startswith(HELD_OUT) and not name.endswith(("_se", "_missing")))
    return [*named, *(name for name in (*EVALUATED, *held_out) if name in logged and name not in named)]


def figures(runs: Sequence[RunData], names: Sequence[str]) -> list[Figure]:
    """A figure for each number that a run has: a line for each run, judges first."""
    drawn = []
    for column in _evaluated(runs):
        lines = [curve(run.evals, column) for run in runs]
        series = [_of_points(name, number, points) for number, (name, points) in enumerate(zip(names, lines, strict=True)) if points]
        note = "Evaluated." + (" Bands: one standard error." if any(any(one.bands) for one in series) else "")
        drawn.append(_figure(column.replace("_", " "), note, series))
    for column, (title, note) in TRAINED.items():
        lines = [curve(run.train, column) for run in runs]
        series = [
            Series(name, thin([(float(point.step), point.value) for point in points]), colour=number)
            for number, (name, points) in enumerate(zip(names, lines, strict=True))
            if points
        ]
        if series:
            drawn.append(_figure(title, note, series))
    return drawn


def _of_points(name: str, number: int, points: Sequence[Point]) -> Series:
    words = [f"{name}: {short(point.value)} at step {point.step}" for point in points]
    line = [(float(point.step), point.value) for point in points]
    return Series(name, line, marks=True, bands=[point.error or 0.0 for point in points], words=words, colour=number)


def _figure(title: str, note: str, series: Sequence[Series]) -> Figure:
    ends = [f"{one.name} from {short(one.points[0][1])} to {short(one.points[-1][1])}" for one in series]
    return Figure(title, note, draw(Plot(series, "step", f"{title}: {'; '.join(ends)}")))


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings in which configs differ: (key, what each says; "" where it says nothing)."""
    tables = [flat(config) for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table if key not in APART)
    rows = [(key, ["" if key not in table else _worded(table[key]) for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _worded(value: Any) -> str:
    words = "null" if value is None else str(value)
    return words if len(words) <= 120 else f"{words[:117]}..."
