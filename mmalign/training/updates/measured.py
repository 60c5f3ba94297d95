"""What the micro-batches of an update measured, and those numbers as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Measured(NamedTuple):
    """Of a micro-batch: its part of the loss, and metrics that are means over so many things; without a gradient, what was compared."""

    loss: float
    things: float
    metrics: dict[str, float]
    compared: Sequence[Sequence[float]] = ()


def pooled(measured: Sequence[Measured]) -> dict[str, float]:
    """Metrics of micro-batches as one: means weighted by what was counted, ``*_max`` the largest."""
    cells = sum(one.things for one in measured)
    names = {name for one in measured for name in one.metrics}
    pooled = {}
    for name in sorted(names):
        values = [(one.things, one.metrics[name]) for one in measured if name in one.metrics]
        if name.endswith("_max"):
            pooled[name] = max(value for _, value in values)
        else:
            pooled[name] = sum(count * value for count, value in values) / max(cells, 1.0)
    return pooled
