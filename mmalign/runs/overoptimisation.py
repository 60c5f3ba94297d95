"""Has the policy learned to please its reward rather than the people behind it? A pure function over a run's evaluations.

The rule. A *watched* number (a judge, or the spread) is compared with its own best evaluation. It counts as fallen where, at
the last evaluation,

1. it lies below its best by more than the noise: two standard errors of the difference, ``2 sqrt(se_best^2 + se_last^2)``,
   from the logged ``<name>_se``; where those are missing, two standard deviations of a difference of two evaluations, with the
   deviation read off the curve's own roughness (median absolute second difference), and never less than 5 % of the curve's
   range. A judge with fewer than 5 evaluations and no standard errors is left undecided (``measurable``);
2. spread only: it lies below 85 % of its best, where a spread ratio above 1 (more varied than real data) counts as 1. Losing
   some spread is the price of any alignment, and this is the line where it is worth a warning;
3. some trained reward meanwhile went up: at the last evaluation it is above its first by more than its noise, and no lower
   than at the watched number's best, within noise. Where the rewards fall as well, training broke, which is another trouble.

A dip that heals is not reported. This is the gap between proxy and gold of Gao, Schulman, Hilton, "Scaling laws for reward model
overoptimization" (2022), section 3, read off one run; they compare fitted curves over KL, and we do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

SPREAD_LINE = 0.85
FLOOR = 0.05
FEWEST_BENDS = 3


@dataclass(frozen=True)
class Finding:
    """``name`` fell from ``best`` at step ``began`` to ``last`` while ``reward`` rose; first beyond the noise at step ``seen``."""

    name: str
    reward: str
    began: int
    seen: int
    best: float
    last: float


@dataclass(frozen=True)
class Point:
    """One evaluation of one number; ``error`` is its standard error, or None."""

    step: int
    value: float
    error: float | None = None


def curve(evals: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """The evaluations that have a finite ``name``, with ``<name>_se`` as standard error."""
    points = []
    for row in evals:
        value, error = row.get(name), row.get(f"{name}_se")
        if isinstance(value, (int, float)) and math.isfinite(value):
            points.append(Point(int(row["step"]), float(value), float(error) if isinstance(error, (int, float)) else None))
    return points


def roughness(points: Sequence[Point]) -> float:
    """The standard deviation of one evaluation: ``1.4826 median |y_(i-1) - 2 y_i + y_(i+1)| / sqrt(6)``.

    0 for fewer than 5 evaluations, where a turn cannot be told from roughness.
    """
    bends = [abs(a.value - 2 * b.value + c.value) for a, b, c in zip(points, points[1:], points[2:], strict=False)]
    return 1.4826 * median(bends) / math.sqrt(6) if len(bends) >= FEWEST_BENDS else 0.0


def noise(points: Sequence[Point], a: Point, b: Point) -> float:
    """By how much ``a`` and ``b`` of one curve may differ by chance: two standard errors of their difference."""
    if a.error is not None and b.error is not None:
        return 2 * math.hypot(a.error, b.error)
    values = [point.value for point in points]
    return max(2 * math.sqrt(2) * roughness(points), FLOOR * (max(values) - min(values)))


def measurable(points: Sequence[Point]) -> bool:
    """Whether chance can be told from change: standard errors are known, or there are evaluations enough to see the roughness."""
    return len(points) >= FEWEST_BENDS + 2 or (len(points) > 1 and all(point.error is not None for point in points))


def overoptimised(evals: Sequence[Mapping[str, Any]], *, rewards: Sequence[str], judges: Sequence[str]) -> list[Finding]:
    """What fell while a trained reward rose, by the rule above; empty where nothing did or where two evaluations are missing.

    evals: the rows of the log with ``phase == "eval"``, in order of steps. rewards, judges: names of columns. ``spread_ratio``
    (or ``spread``, where there is no ratio) is always watched.
    """
    spread = "spread_ratio" if curve(evals, "spread_ratio") else "spread"
    findings = []
    for name in [judge for judge in judges if judge not in rewards] + [spread]:
        points = curve(evals, name)
        if name == "spread_ratio":
            points = [Point(p.step, min(p.value, 1.0), p.error) for p in points]
        fallen = None
        if name == spread:  # its line is margin enough
            fallen = _fallen(points, limit=SPREAD_LINE)
        elif measurable(points):
            fallen = _fallen(points, limit=None)
        rising = [reward for reward in rewards if fallen and _rose(curve(evals, reward), since=fallen[0].step)]
        if fallen and rising:
            best, seen, last = fallen
            findings.append(Finding(name, rising[0], best.step, seen.step, best.value, last.value))
    return findings


def begun(evals: Sequence[Mapping[str, Any]], *, rewards: Sequence[str], judges: Sequence[str]) -> list[Finding]:
    """What the last evaluation shows to have fallen and those before it did not: what is news while a run goes."""
    known = {finding.name for finding in overoptimised(evals[:-1], rewards=rewards, judges=judges)}
    return [finding for finding in overoptimised(evals, rewards=rewards, judges=judges) if finding.name not in known]


def in_words(finding: Finding) -> str:
    """``gold fell from 0.9 at step 20 to 0.6 while the reward proxy rose``."""
    name = finding.name.replace("_", " ")
    return f"{name} fell from {finding.best:.3g} at step {finding.began} to {finding.last:.3g} while the reward {finding.reward} rose"


def fell_silent(invented: Sequence[Point], recalled: Sequence[Point]) -> Finding | None:
    """Whether recall fell from its best, beyond chance and by more than 5 % of it, while inventions became fewer.

    Then less is invented because less is said. Whatever the rewards do meanwhile: a method that learns from pairs may have none.
    """
    fallen = _fallen(recalled, limit=1 - FLOOR)
    if fallen is None:
        return None
    best, seen, last = fallen
    then = [point for point in invented if point.step <= best.step]
    if not then or invented[-1].value >= then[-1].value:
        return None
    return Finding("recall", "", best.step, seen.step, best.value, last.value)


def _fallen(points: Sequence[Point], *, limit: float | None) -> tuple[Point, Point, Point] | None:
    """(best, first point below it, last point) where the last is below the best, None otherwise."""
    if len(points) < 2:
        return None
    best = max(points, key=lambda p: (p.value, p.step))  # the latest of equals: that is where the fall begins

    def below(point: Point) -> bool:
        line = math.inf if limit is None else limit * best.value
        return point.value < best.value - noise(points, best, point) and point.value < line

    after = [p for p in points if p.step > best.step and below(p)]
    return (best, after[0], points[-1]) if after and below(points[-1]) else None


def _rose(points: Sequence[Point], *, since: int) -> bool:
    before = [p for p in points if p.step <= since]
    if len(points) < 2 or not before:
        return False
    first, last = points[0], points[-1]
    up = last.value > first.value + noise(points, first, last)
    return up and last.value >= before[-1].value - noise(points, before[-1], last)
