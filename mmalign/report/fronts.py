"""Several rewards, or several judges, of one run: which of its evaluations no other one beats, and how much these dominate together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmalign.evaluation.fronts import hypervolume, pareto_front
from mmalign.report.plots import Figure, Plot, Series, draw, short
from mmalign.report.read import RunData
from mmalign.runs.overoptimisation import curve

MEASURED = 3  # objectives, at most, whose hypervolume is drawn: its cost is the number of points to the power of objectives - 1
ROOM = 0.1  # below the lowest evaluation of each objective, as a part of its range, where no config says what is worth nothing


class Front(NamedTuple):
    """Of the evaluations that have all objectives: ``steps``, and ``points`` in the order of ``objectives``, costs with their sign turned.

    places: those that nobody beats. corner: what is worth nothing. volumes: the hypervolume of the evaluations up to each; [] for more than
    three objectives.
    """

    objectives: list[str]
    costs: list[str]
    steps: list[int]
    points: list[list[float]]
    places: list[int]
    corner: list[float]
    volumes: list[float]


def front(run: RunData, objectives: Sequence[str]) -> Front | None:
    """The held-out front of a run; None for fewer than two objectives, or two evaluations that have them all.

    A reward with a limit (``combine.limits``) or a weight below 0 is a cost: less of it is better. The corner is what ``combine.worst``
    says where it has all objectives (as ``hypervolume_weights`` takes it), and a tenth of its range below the lowest evaluation of each
    elsewhere, so that the ends of a front count too; 1 below one that never changed, so that the hypervolume is that of the others.
    """
    combine = run.config.get("combine")
    said: Mapping[str, Any] = combine if isinstance(combine, Mapping) else {}
    costs = [name for name in objectives if name in _mapping(said.get("limits")) or _number(_mapping(said.get("weights")).get(name), 1) < 0]
    signs = [-1.0 if name in costs else 1.0 for name in objectives]
    values = [{point.step: point.value for point in curve(run.evals, name)} for name in objectives]
    steps = [step for step in (values[0] if values else ()) if all(step in known for known in values)]
    if len(objectives) < 2 or len(steps) < 2:
        return None
    points = [[sign * known[step] for sign, known in zip(signs, values, strict=True)] for step in steps]
    worst = [_number(_mapping(said.get("worst")).get(name), math.nan) for name in objectives]
    lowest = [min(axis) - (ROOM * (max(axis) - min(axis)) or 1.0) for axis in zip(*points, strict=True)]
    corner = lowest if any(map(math.isnan, worst)) else [sign * value for sign, value in zip(signs, worst, strict=True)]
    volumes = _volumes(points, corner) if len(objectives) <= MEASURED else []
    return Front([*objectives], costs, steps, points, pareto_front(points), corner, volumes)


def figures(run: RunData) -> list[Figure]:
    """Of rewards, and of judges, where a run has several of them: two in their plane, with the front, and the hypervolume by steps."""
    drawn = []
    for kind, names in (("rewards", run.rewards), ("judges", run.judges)):
        found = front(run, names)
        if found is not None:
            drawn += [_plane(found, kind, run.unit)] if len(names) == 2 else []
            drawn += [_volume(found, kind, run.unit)]
    return drawn


def in_words(found: Front, unit: str) -> str:
    """Which evaluations nobody beats: the first few, and how many."""
    best = [str(found.steps[place]) for place in found.places]
    some = ", ".join(best[:8]) + (f" and {len(best) - 8} more" if len(best) > 8 else "")
    less = f" Less is better of {', '.join(found.costs)}." if found.costs else ""
    return f"No other evaluation is as good in all and better in one: {unit} {some}, {len(best)} of {len(found.steps)}.{less}"


def _plane(found: Front, kind: str, unit: str) -> Figure:
    shown = [tuple(-value if name in found.costs else value for name, value in _named(found, point)) for point in found.points]
    order = sorted(found.places, key=lambda place: found.points[place])
    words = [f"{short(x)}, {short(y)} at {unit} {step}" for (x, y), step in zip(shown, found.steps, strict=True)]
    labels = ["" if 0 < place < len(shown) - 1 else f"{unit} {step}" for place, step in enumerate(found.steps)]
    path = Series("evaluations", [(x, y) for x, y in shown], faint=True, marks=True, words=words, labels=labels)
    edge = Series("front", [(shown[at][0], shown[at][1]) for at in order], marks=True, words=[words[at] for at in order], colour=1)
    x_word, y_word = found.objectives
    title = f"The front of {kind}"
    plot = Plot([path, edge], x_word, f"{title}: {in_words(found, unit)}", steps=False, pad_x=0.08, y_word=y_word)
    return Figure(title, in_words(found, unit), draw(plot), (("evaluations", "s0"), ("front", "s1")))


def _volume(found: Front, kind: str, unit: str) -> Figure:
    title = f"Hypervolume of {kind}"
    if not found.volumes:
        return Figure(title, f"{in_words(found, unit)} Of {len(found.objectives)} {kind} no hypervolume is measured, takes {MEASURED}.")
    ends = f"from {short(found.volumes[0])} to {short(found.volumes[-1])}"
    corner = ", ".join(f"{name} {short(-low if name in found.costs else low)}" for name, low in _named(found, found.corner))
    line = Series(
        "hypervolume",
        list(zip(map(float, found.steps), found.volumes, strict=True)),
        marks=True,
        words=[f"{short(volume)} at {unit} {step}" for step, volume in zip(found.steps, found.volumes, strict=True)],
        colour=1,
    )
    still = [name for name, axis in zip(found.objectives, zip(*found.points, strict=True), strict=True) if min(axis) == max(axis)]
    same = f" The same in every evaluation: {', '.join(still)}." if still else ""
    note = f"Of what the evaluations so far dominate, {ends}; counted from {corner}. {in_words(found, unit)}{same}"
    return Figure(title, note, draw(Plot([line], unit, f"{title}: {ends}")))


def _volumes(points: Sequence[Sequence[float]], corner: Sequence[float]) -> list[float]:
    """The hypervolume of the first points, the first two, and so on: measured anew where one joins the front."""
    volumes, best = list[float](), list[Sequence[float]]()
    for point in points:
        if any(all(a >= b for a, b in zip(old, point, strict=True)) for old in best):
            volumes.append(volumes[-1])
            continue
        best = [old for old in best if not all(a >= b for a, b in zip(point, old, strict=True))] + [point]
        volumes.append(hypervolume(best, corner))
    return volumes


def _named(found: Front, point: Sequence[float]) -> list[tuple[str, float]]:
    return list(zip(found.objectives, point, strict=True))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any, otherwise: float) -> float:
    """A finite number of a config; what is none is ``otherwise``."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else otherwise
