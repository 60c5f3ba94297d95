"""Points of several objectives, larger is better in each: which of them nobody beats, and how well these cover what can be had."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

__all__ = ["crowding", "expected_utility", "hypervolume", "pareto_front", "sparsity"]

Points = Sequence[Sequence[float]]


def pareto_front(points: Points) -> list[int]:
    """The places of points that no other one beats: at least as good in every objective, and better in one. Of equal points the first.

    points: one a row, a number for each objective, of which more is better.

    Examples:
        >>> mm.evaluation.pareto_front([(1, 0), (0, 1), (0.4, 0.4), (0.3, 0.4), (0, 1)])
        [0, 1, 2]
    """
    known = [tuple(point) for point in points]

    def beaten(place: int) -> bool:
        own = known[place]
        ahead = (other for other in known if other != own and all(a >= b for a, b in zip(other, own, strict=True)))
        return any(True for _ in ahead) or own in known[:place]

    return [place for place in range(len(known)) if not beaten(place)]


def crowding(points: Points) -> list[float]:
    """How much room each point has: ``sum_k (next above in objective k - next below) / (largest - smallest)``; infinite at either end.

    points: one a row, a number for each objective, of which more is better.

    Paper: NSGA-II (Deb et al. 2002), sec. III-B. An objective in which all are equal adds nothing.

    Examples:
        >>> mm.evaluation.crowding([(0, 4), (1, 2), (4, 0)])
        [inf, 2.0, inf]
    """
    room = [0.0] * len(points)
    for axis in zip(*points, strict=True):
        order = sorted(range(len(points)), key=lambda place: axis[place])
        span = axis[order[-1]] - axis[order[0]]
        if span == 0:
            continue
        for at, place in enumerate(order):
            ends = at in (0, len(order) - 1)
            room[place] += math.inf if ends else (axis[order[at + 1]] - axis[order[at - 1]]) / span
    return room


def sparsity(points: Points) -> float:
    """The mean squared gap between neighbours on a front, ``sum_k sum_i (p_k(i+1) - p_k(i))^2 / (n - 1)``, sorted by each objective.

    points: one a row, a number for each objective, of which more is better.

    0 for one point. Smaller is denser; it says nothing of how far out the front is. Paper: Prediction-Guided Multi-Objective
    Reinforcement Learning (Xu et al. 2020), as C-MORL has it; recalled.

    Examples:
        >>> mm.evaluation.sparsity([(0, 4), (1, 2), (4, 0)])
        9.0
    """
    gaps = (b - a for axis in zip(*points, strict=True) for a, b in itertools.pairwise(sorted(axis)))
    return sum(gap**2 for gap in gaps) / max(len(points) - 1, 1)


def hypervolume(points: Points, corner: Sequence[float]) -> float:
    """The volume between ``corner`` and what the points dominate, exact, by slices along the last axis; what is below it adds nothing.

    points: one a row, a number for each objective, of which more is better.
    corner: of each objective, what is worth nothing. The time grows with the number of points to the power of objectives - 1.

    Paper: Zitzler, Thiele (1998), "the size of the space covered"; recalled.

    Examples:
        >>> mm.evaluation.hypervolume([(2, 1), (1, 2), (0.5, 0.5)], (0, 0))
        3.0
    """
    inside = [tuple(point) for point in points if all(value > low for value, low in zip(point, corner, strict=True))]
    if not inside:
        return 0.0
    if len(corner) == 1:
        return max(point[0] for point in inside) - corner[0]
    levels, volume = sorted({point[-1] for point in inside}, reverse=True), 0.0
    for number, level in enumerate(levels):
        below = levels[number + 1] if number + 1 < len(levels) else corner[-1]
        volume += (level - below) * hypervolume([point[:-1] for point in inside if point[-1] >= level], corner[:-1])
    return volume


def expected_utility(points: Points, *, divisions: int = 20) -> float:
    """``E_w[max_i w . p(i)]``: what somebody whose weights nobody knows gets of the best point for them, the mean over even weights.

    points: one a row, a number for each objective, of which more is better.

    divisions: of each weight: all ``w`` whose entries are multiples of ``1 / divisions`` and add up to 1.

    Paper: as ``sparsity``.

    Examples:
        >>> mm.evaluation.expected_utility([(1.0, 0.0), (0.0, 1.0)], divisions=2)  # weights 0, 1/2 and 1
        0.8333333333333334
    """
    count = len(points[0])
    cuts = itertools.combinations(range(divisions + count - 1), count - 1)
    weights = [[b - a - 1 for a, b in itertools.pairwise((-1, *cut, divisions + count - 1))] for cut in cuts]
    best = (max(sum(w * p for w, p in zip(weight, point, strict=True)) for point in points) for weight in weights)
    return sum(best) / divisions / len(weights)
