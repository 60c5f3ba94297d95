"""The bins of a reliability diagram among the numbers of an evaluation, as ``training.evaluations.reliability`` makes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

PREFIX = "held_out/bins/"
"""How the names of their numbers begin in the log: ``held_out/bins/K/count``, ``predicted``, ``observed``."""
Z = 1.96  # of 95 %


class Bin(NamedTuple):
    """``size`` comparisons that were said to be right with the mean probability ``predicted``; ``observed`` of them were, and of others
    like them, with 95 % confidence, ``low`` to ``high`` would be (Wilson)."""

    size: float
    predicted: float
    observed: float
    low: float
    high: float


def bins(row: Mapping[str, Any]) -> list[Bin]:
    """Those of an evaluation, by falling doubt; none where nothing was compared.

    Examples:
        >>> [one] = bins({"held_out/bins/3/count": 40.0, "held_out/bins/3/predicted": 0.68, "held_out/bins/3/observed": 0.75})
        >>> one.size, round(one.low, 3), round(one.high, 3)
        (40.0, 0.598, 0.858)
    """
    numbers = sorted({int(name.removeprefix(PREFIX).partition("/")[0]) for name in row if name.startswith(PREFIX)})
    found = []
    for number in numbers:
        count, predicted, observed = (float(row[f"{PREFIX}{number}/{name}"]) for name in ("count", "predicted", "observed"))
        middle, half = _wilson(observed, count)
        found.append(Bin(count, predicted, observed, middle - half, middle + half))
    return found


def _wilson(share: float, count: float) -> tuple[float, float]:
    """Middle and half width of the interval."""
    scale = 1 + Z**2 / count
    return (share + Z**2 / (2 * count)) / scale, Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / scale
