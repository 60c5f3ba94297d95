"""Drift over evaluations: how far a number moved in all, and by which step it had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from mmalign.arguments.ranges import Fraction
from mmalign.evaluation.intervals import Column
from mmalign.types import UserError

__all__ = ["Drift", "drift"]


class Drift(NamedTuple):
    """How far a number moved, and by when.

    start: the first value. end: the last one. magnitude: ``M = end - start``, with its sign. error: one standard error of it.
    time: the step by which the share of M was reached, NaN where nothing moved.
    """

    start: float
    end: float
    magnitude: float
    error: float
    time: float


def drift(steps: Sequence[int], values: Column, errors: Column | None = None, *, share: Fraction = 0.95) -> Drift:
    """``M = s_end - s_0``, and ``tau``, the first step at which ``(s - s_0) / M >= share``.

    For the share of answers that take a stance (a reward or judge that says 1 for those, one for each stance), and any other number of an
    evaluation. A value that goes beyond its end and comes back has reached the share where it first did.

    Args:
        steps: of the evaluations, increasing.
        values: of each, NaN for one that is missing: that evaluation is left out.
        errors: the values' standard errors. M's is the root of the sum of the squares of those of its two ends: too large where the same
            prompts are evaluated each time, as their differences vary less. NaN without.
        share: of M.

    Paper: Bhatia et al., "Value Drifts: Tracing Value Alignment During LLM Post-Training" (2025), https://arxiv.org/abs/2510.26707
    (*recalled*): drift magnitude and drift time.

    Deviations: the time is a step, not a part of the run; errors are ours.

    Errors: UserError for columns of different lengths, and steps that do not increase.

    Examples:
        >>> drift([0, 10, 20, 30], [0.2, 0.5, 0.69, 0.7])
        Drift(start=0.2, end=0.7, magnitude=0.49999999999999994, error=nan, time=20)
    """
    wrong = [math.nan] * len(steps) if errors is None else errors
    if not len(steps) == len(values) == len(wrong):
        raise UserError(f"drift: got {len(steps)} steps, {len(values)} values and {len(wrong)} errors, takes one of each")
    if any(after <= before for before, after in pairwise(steps)):
        raise UserError(f"drift.steps: got {list(steps)}, takes increasing ones")
    known = [row for row in zip(steps, values, wrong, strict=True) if not math.isnan(row[1])]
    if len(known) < 2:
        alone = known[0][1] if known else math.nan
        return Drift(alone, alone, math.nan, math.nan, math.nan)
    (_, start, first), (_, end, last) = known[0], known[-1]
    moved = end - start
    time = next((step for step, value, _ in known if (value - start) / moved >= share), math.nan) if moved else math.nan
    return Drift(start, end, moved, math.hypot(first, last), time)
