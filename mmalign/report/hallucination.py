"""The figures of a run that answers questions about images: what it invents beside what it leaves out, how long it is, whether it looks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mmalign.report.plots import Figure, Plot, Rule, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import Point, curve

INVENTED = ("chair_s", "chair_i", "hallucination")
RECALLED = ("object_recall", "recall")
LENGTHS = ("answer_words", "length")
LOOKS = "image_dependence"
WORDS = {
    "chair_s": "answers with an invention", "chair_i": "mentions that are inventions", "hallucination": "hallucination",
    "object_recall": "objects that are said", "recall": "objects that are said",
}  # fmt: skip


class Standing(NamedTuple):
    """One evaluation in the plane of inventions and recall."""

    step: int
    invented: Point
    recalled: Point


def columns(run: RunData) -> tuple[str, str] | None:
    """The logged columns of inventions and of recall, None where one of them is missing."""
    invented = next((name for name in INVENTED if curve(run.evals, name)), None)
    recalled = next((name for name in RECALLED if curve(run.evals, name)), None)
    return (invented, recalled) if invented and recalled else None


def standings(run: RunData) -> list[Standing]:
    """The evaluations that have both numbers."""
    names = columns(run)
    if names is None:
        return []
    first, second = ({point.step: point for point in curve(run.evals, name)} for name in names)
    return [Standing(step, first[step], second[step]) for step in sorted(first.keys() & second.keys())]


def front(points: Sequence[Standing]) -> list[Standing]:
    """Those that no other beats in one number without losing in the other, by rising inventions; of equals the earliest."""
    best: list[Standing] = []
    for point in sorted(points, key=lambda p: (p.invented.value, -p.recalled.value, p.step)):
        if not best or point.recalled.value > best[-1].recalled.value:
            best.append(point)
    return best


def figures(run: RunData) -> list[Figure]:
    """Those that the run has numbers for."""
    figures = [against_recall(run), length(run), looking(run)]
    return [figure for figure in figures if figure is not None]


def against_recall(run: RunData) -> Figure | None:
    """Every checkpoint by what it invents and what it says; the Pareto front joins those that no other beats in both."""
    points, names = standings(run), columns(run)
    if not points or names is None:
        return None
    best = front(points)
    words = [f"{_share(p.invented)} {WORDS[names[0]]}, {_share(p.recalled)} of objects said, step {p.step}" for p in points]
    ends = {points[0].step: f"step {points[0].step}", points[-1].step: f"step {points[-1].step}"}
    path = Series(
        "checkpoints, in order", [(p.invented.value, p.recalled.value) for p in points], marks=True, words=words, colour=0, faint=True,
        crosses=[(p.invented.error or 0.0, p.recalled.error or 0.0) for p in points], labels=[ends.get(p.step, "") for p in points],
    )  # fmt: skip
    stairs = [(best[0].invented.value, best[0].recalled.value)]
    for before, after in pairwise(best):
        stairs += [(after.invented.value, before.recalled.value), (after.invented.value, after.recalled.value)]
    line = Series("Pareto front", stairs, dashed=True, colour=2)
    note = "Best is the upper left: nothing invented, nothing left out. A model that falls silent moves to the lower left."
    if any(p.invented.error or p.recalled.error for p in points):
        note += " Crosses: one standard error."
    first, last = points[0], points[-1]
    ends_in_words = f"from {_share(first.invented)} and {_share(first.recalled)} to {_share(last.invented)} and {_share(last.recalled)}"
    plot = Plot(
        [line, path] if len(best) > 1 else [path], f"{names[0]}: {WORDS[names[0]]}", f"Inventions and recall, {ends_in_words}", steps=False,
        y_word=f"{names[1]}: {WORDS[names[1]]}", pad_x=0.08,
    )  # fmt: skip
    legend = (("checkpoints, in order", "s0"), ("Pareto front", "s2 dashed")) if len(best) > 1 else ()
    return Figure("Inventions against recall", note, draw(plot), legend)


def length(run: RunData) -> Figure | None:
    """How long answers are, evaluation by evaluation."""
    name = next((name for name in LENGTHS if curve(run.evals, name)), None)
    note = "Inventions are fewer in shorter answers: read them at equal length."
    return None if name is None else _curve(run, name, "Length of answers", note, "words", colour=4)


def looking(run: RunData) -> Figure | None:
    """The log-ratio of answers with and without their image."""
    note = "How much likelier a token of the answer is with the image than without, in nats; at 0 the image is not looked at."
    if not curve(run.evals, LOOKS):
        return None
    return _curve(run, LOOKS, "Image dependence", note, "nats per token", rules=(Rule(0.0, ""),), colour=3)


def _curve(run: RunData, name: str, title: str, note: str, unit: str, *, rules: Sequence[Rule] = (), colour: int = 0) -> Figure:
    points = curve(run.evals, name)
    words = [f"{short(p.value)} {unit} at step {p.step}" for p in points]
    line, bands = [(float(p.step), p.value) for p in points], [p.error or 0.0 for p in points]
    series = Series(title.lower(), line, marks=True, words=words, bands=bands, colour=colour)
    errors = " Band: one standard error." if any(bands) else ""
    alt = f"{title} from {short(points[0].value)} to {short(points[-1].value)} {unit}"
    return Figure(title, note + errors, draw(Plot([series], "step", alt, rules)))


def _share(point: Point) -> str:
    error = f" ± {100 * point.error:.1f}" if point.error else ""
    return f"{100 * point.value:.1f}{error} %"
