"""Have a run's samples moved away from those of the model that it began with, in pixels? A pure function over its evaluations.

The rule. Of each statistic ``pixels/NAME`` (``training.evaluations.pixels``), the mean over the samples of an evaluation is compared with
that of the first one, on the same prompts and seeds. It has moved where it lies

1. more than ``LINE`` of the first evaluation's standard deviations among samples away, and of at least ``LEAST`` in the statistic's units;
2. and more than ``ERRORS`` standard errors of the difference away, as of other samples (the same seeds make it less);
3. of ``FEWEST`` samples or more, on both sides.

A shift is reported where the last evaluation has moved, and dated by the first of those that have since. One that heals is not.
Whether it is a fault is for a person to see: who asks for darker pictures gets them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

PREFIX = "pixels/"
SAMPLES = f"{PREFIX}samples"
LINE, ERRORS, LEAST, FEWEST = 2.0, 4.0, 1e-3, 8


@dataclass(frozen=True)
class Shift:
    """A statistic that went from ``before`` to ``now``, by ``distance`` deviations of the base's samples (below 0: down), and that has been
    beyond the line since ``step``."""

    name: str
    step: int
    before: float
    now: float
    distance: float


@dataclass(frozen=True)
class Mean:
    """A statistic over the samples of one evaluation: its mean, their standard deviation, its standard error, and how many they are."""

    step: int
    value: float
    deviation: float
    error: float
    count: float

    @property
    def unit(self) -> float:
        """What distances from it are counted in."""
        return max(self.deviation, LEAST)


def curves(evals: Sequence[Mapping[str, Any]]) -> dict[str, list[Mean]]:
    """name -> its finite means, in the order of the evaluations. evals: rows of a log or of a journal, with their ``step``."""
    keys = dict.fromkeys(key for row in evals for key in row if key.startswith(PREFIX) and key != SAMPLES)
    names = [key.removeprefix(PREFIX) for key in keys if not key.endswith(("_se", "_missing"))]
    found = {name: [mean for row in evals if (mean := _mean(row, name)) is not None] for name in names}
    return {name: means for name, means in found.items() if means}


def _mean(row: Mapping[str, Any], name: str) -> Mean | None:
    numbers = [row.get(key) for key in (f"{PREFIX}{name}", f"{PREFIX}{name}_se", SAMPLES)]
    finite = [float(number) for number in numbers if isinstance(number, (int, float)) and math.isfinite(number)]
    if len(finite) < len(numbers):
        return None
    value, error, samples = finite
    count = samples - (row.get(f"{PREFIX}{name}_missing") or 0.0)
    return Mean(int(row["step"]), value, error * math.sqrt(count), error, count)


def distance(base: Mean, now: Mean) -> float:
    """How many of the base's deviations a mean has moved; below 0: down."""
    return (now.value - base.value) / base.unit


def moved(base: Mean, now: Mean) -> bool:
    """Whether it lies beyond the line, and beyond chance; never of too few samples."""
    beyond_chance = abs(now.value - base.value) > ERRORS * math.hypot(base.error, now.error)
    return min(base.count, now.count) >= FEWEST and abs(distance(base, now)) > LINE and beyond_chance


def shifts(evals: Sequence[Mapping[str, Any]]) -> list[Shift]:
    """What has moved at the last evaluation, the farthest first; empty where nothing has, and where two evaluations are missing."""
    found = []
    for name, (base, *after) in curves(evals).items():
        since = list(takewhile(partial(moved, base), reversed(after)))
        if since and after[-1].step == evals[-1]["step"]:
            found.append(Shift(name, since[-1].step, base.value, after[-1].value, distance(base, after[-1])))
    return sorted(found, key=lambda shift: -abs(shift.distance))


def in_words(shift: Shift) -> str:
    """``brightness fell from 0.31 to 0.05, by 6.2 deviations of the base's samples``."""
    way = "rose" if shift.now > shift.before else "fell"
    moved_by = f"by {abs(shift.distance):.1f} deviations of the base's samples"
    return f"{shift.name.replace('_', ' ')} {way} from {shift.before:.3g} to {shift.now:.3g}, {moved_by}"
