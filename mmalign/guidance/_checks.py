"""What settings of guidance have to be: one line for each that is not, before anything is sampled."""

from __future__ import annotations

import math

from mmalign.types import UserError


def check_interval(name: str, start: float, stop: float) -> None:
    """Errors: UserError unless ``0 <= start <= stop <= 1``."""
    if not 0 <= start <= stop <= 1:
        raise UserError(f"{name}: got start {start} and stop {stop}, takes 0 <= start <= stop <= 1")


def check_finite(name: str, **numbers: float) -> None:
    """Errors: UserError for the first that is infinite or NaN."""
    for key, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(f"{name}.{key}: got {number}, takes a finite number")


def check_above(name: str, **numbers: float | None) -> None:
    """Errors: UserError for the first that is neither None nor above 0."""
    for key, number in numbers.items():
        if number is not None and not number > 0:
            raise UserError(f"{name}.{key}: got {number}, takes a number above 0, or None")


def check_counts(name: str, **counts: int) -> None:
    """Errors: UserError for the first below 1."""
    for key, count in counts.items():
        if count < 1:
            raise UserError(f"{name}.{key}: got {count}, takes 1 or more")
