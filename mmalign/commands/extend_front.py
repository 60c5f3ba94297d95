"""An archive of policies along a Pareto front: what is in it, how good it is, and what the next policy is to be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count, Finite, Fraction, NotNegative
from mmalign.distributed.team import joined
from mmalign.evaluation.fronts import crowding, expected_utility, hypervolume, pareto_front, sparsity
from mmalign.files import write_json
from mmalign.types import UserError

__all__ = ["extend_front"]


def extend_front(
    runs: Sequence[str] | None = None, *, out: str, corner: Mapping[str, Finite], first: Sequence[Mapping[str, NotNegative]],
    parents: Count = 2, keep: Fraction = 0.9,
) -> dict[str, float]:  # fmt: skip
    """Measures the archive of the runs so far, and plans the next one; a stage of ``rounds`` before and after the one that trains.

    The first runs follow ``first``, weights each. From then on generations: of the front as it stood before one, ``parents`` policies with
    the most room around them (``crowding``), and for each of these and each objective i a run from its parameters::

        max J_i   so that   J_j >= J_j(parent) - (1 - keep) |J_j(parent)|   for j != i

    Args:
        runs: folders of finished runs, in the order in which they were planned: ``{stage: train, round: all, otherwise: null}``.
        out: a file of JSON: ``runs``, ``points`` (objectives of each, by its last or best evaluation), ``front`` (places of those that
            nobody beats), ``measures``, and the plan of the next run: ``weights``, or ``objective`` and ``floors`` (the other null),
            which ``combine: {use: front_member, plan: ...}`` reads, and ``parent``, the run whose parameters it starts from (null: none).
        corner: objective -> what is worth nothing, from which the hypervolume is measured; names of rewards or judges of the runs, in
            units of their evaluations. first: weights of rewards. parents: of a generation, fewer where the front has fewer points.
        keep: of the other objectives, the part that a run does not fall below.

    Counts: ``members`` of the front, its ``hypervolume``, ``sparsity`` and expected ``utility`` (weights that add up to 1, objectives
    measured from the corner); the last two only where there is a run.

    Paper: C-MORL: Multi-Objective Reinforcement Learning through Efficient Discovery of Pareto Front, https://arxiv.org/abs/2410.02236
    (two stages, selection by crowding distance, constraints relative to the parent; recalled). Deviations: a generation's parents are of
    the archive before it; one run for each objective, without the policies on its way.

    Errors: UserError for a file that is there, fewer than two objectives, no first weights, and runs without a number for an objective.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    objectives = [*corner]
    if len(objectives) < 2 or not first:
        raise UserError(f"extend_front: got corner={dict(corner)}, first={list(first)}, takes two objectives or more, and weights")
    if odd := [name for weights in first for name in weights if name not in corner]:
        raise UserError(f"extend_front.first: got {odd[0]!r}, takes objectives of corner: {', '.join(objectives)}")
    folders = [*(runs or [])]
    points = [_point(folder, objectives) for folder in folders]
    measures = measured(points, [corner[name] for name in objectives])
    plan = _planned(folders, points, objectives, first, parents, keep)
    if joined().main:
        front = pareto_front(points)
        write_json(Path(out), {"runs": folders, "points": points, "front": front, "measures": measures, **plan})
    joined().tell("written")
    return measures


def measured(points: Sequence[Sequence[float]], corner: Sequence[float]) -> dict[str, float]:
    """``members``, ``hypervolume``, ``sparsity`` and ``utility`` of the front among points."""
    front = [[value - low for value, low in zip(points[place], corner, strict=True)] for place in pareto_front(points)]
    if not front:
        return {"members": 0, "hypervolume": 0.0}
    volume = hypervolume(front, [0.0] * len(corner))
    return {"members": len(front), "hypervolume": volume, "sparsity": sparsity(front), "utility": expected_utility(front)}


def _planned(
    runs: Sequence[str], points: Sequence[Sequence[float]], objectives: Sequence[str], first: Sequence[Mapping[str, float]], parents: int,
    keep: float,
) -> dict[str, Any]:  # fmt: skip
    """``weights``, ``objective``, ``floors`` and ``parent`` of the run that comes after these."""
    if len(runs) < len(first):
        return {"weights": dict(first[len(runs)]), "objective": None, "floors": None, "parent": None}
    generation, place = divmod(len(runs) - len(first), parents * len(objectives))
    archive = points[: len(first) + generation * parents * len(objectives)]
    front = pareto_front(archive)
    room = crowding([archive[place] for place in front])
    chosen = sorted(range(len(front)), key=lambda place: -room[place])[:parents]
    parent = front[chosen[place // len(objectives) % len(chosen)]]
    objective = objectives[place % len(objectives)]
    others = {name: value - (1 - keep) * abs(value) for name, value in zip(objectives, archive[parent], strict=True) if name != objective}
    return {"weights": None, "objective": objective, "floors": others, "parent": runs[parent]}


def _point(folder: str, objectives: Sequence[str]) -> list[float]:
    """What a run came to. Errors: UserError where it does not say."""
    try:
        summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        values = [float(summary[f"{name}_after"]) for name in objectives]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"extend_front: {folder} has no evaluation of {', '.join(objectives)}; takes finished runs that have") from error
    if odd := [name for name, value in zip(objectives, values, strict=True) if not math.isfinite(value)]:
        raise UserError(f"extend_front: {folder} has no number for {odd[0]}, takes runs whose evaluations have one")
    return values
