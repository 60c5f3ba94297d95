"""Which numbers a setting takes, said once, in its annotation: ``steps: Count``, ``ema: Share``, ``Annotated[int, within(2, 64)]``.

A range is checked wherever a value comes in as data, before anything is built: in a config, in a record of settings, and in a function
that a room answers with. Nothing takes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

MANY, LONG = 1_000_000, 1_000_000_000


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``. above, below: without that end itself.

    Examples:
        >>> str(Range(0, 1, below=True)), str(Range(1)), str(Range(0, above=True))
        ('a number from 0 to below 1', '1 or more', 'a number above 0')
        >>> Range(1, 1_000_000).takes(0), Range(1, 1_000_000).takes(10**12)
        ('1 or more', '1 to 1,000,000')
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.high) and math.isinf(self.low):
            return "a finite number"
        if math.isinf(self.high):
            return f"a number above {_short(self.low)}" if self.above else f"{_short(self.low)} or more"
        high = f"below {_short(self.high)}" if self.below else _short(self.high)
        if math.isinf(self.low):
            return f"a number {high}" if self.below else f"{high} or less"
        low = f"above {_short(self.low)}" if self.above else _short(self.low)
        return f"a number from {low} to {high}" if self.above or self.below else f"{low} to {high}"

    def takes(self, value: Any) -> str:
        """What a message says that is taken in place of a value: an end that only guards against the absurd is not everybody's to read."""
        value = next(iter(numbers_outside(value, self)), value)
        if isinstance(value, float) and math.isinf(value) and math.isfinite(self.low):
            return f"{self}, and finite"
        if isinstance(value, int) and abs(value) >= 2**63 and math.isinf(self.high):
            return f"{self}, and of 64 bits"
        small = isinstance(value, (int, float)) and not value > self.low
        return str(Range(self.low, above=self.above)) if small and self.high >= MANY else str(self)


def within(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Range:
    """What goes into an annotation: ``Annotated[float, within(0, 1, below=True)]``."""
    return Range(low, high, above, below)


Count = Annotated[int, within(1, MANY)]
"""How many of something there are at once: 1 to a million."""
Steps = Annotated[int, within(1, LONG)]
"""Steps of a run, or between two things in it."""
Natural = Annotated[int, within(0, LONG)]
"""0 or more."""
Seed = Annotated[int, within(0, 2**53)]
"""Of a generator: every number that JSON and torch keep."""
Positive = Annotated[float, within(0, above=True, below=True)]
"""Above 0, and finite."""
NotNegative = Annotated[float, within(0, below=True)]
"""0 or more, and finite."""
Finite = Annotated[float, within(-math.inf, above=True, below=True)]
"""Any number that is one."""
Share = Annotated[float, within(0, 1, below=True)]
"""From 0 to below 1: a decay, a dropout."""
Proportion = Annotated[float, within(0, 1)]
"""From 0 to 1, both included."""
Fraction = Annotated[float, within(0, 1, above=True)]
"""Above 0 and up to 1: a part of something, and not none of it."""
Interior = Annotated[float, within(0, 1, above=True, below=True)]
"""Between 0 and 1, neither of them included."""
Half = Annotated[float, within(0, 0.5, below=True)]
"""From 0 to below one half: how often a label is wrong."""
Mark = Annotated[int, within(-1000, 1000)]
"""An end of the scale on which somebody judges."""
Size = Annotated[int, within(1, 2**53)]
"""Bytes or pixels that something may have."""


def _short(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**10 else f"{number:g}"


def outside_of(value: Any, allowed: Range | None) -> bool:
    """Whether a number, or one in a list or a mapping, is not in a range, or is NaN, or an int of more than 64 bits."""
    return any(True for _ in numbers_outside(value, allowed))


def numbers_outside(value: Any, allowed: Range | None) -> Iterator[float]:
    """The numbers of a value that are outside of a range, as `outside_of` has it."""
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_outside(item, allowed)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        absurd = abs(value) >= 2**63 if isinstance(value, int) else math.isnan(value)
        if absurd or (allowed is not None and value not in allowed):
            yield value
