"""Numbers that a method keeps from update to update: explicit, and in every checkpoint (``dump`` and ``load``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class RunningMean:
    """The mean of everything seen, or, with a ``decay``, an exponential moving average of batch means; NaN before anything was seen."""

    def __init__(self, *, decay: float | None = None):
        self.decay, self.mean, self.count = decay, float("nan"), 0

    def update(self, values: Tensor) -> Tensor:
        """Takes in ``values`` of any shape, and returns the mean, 0-d float64; without values, and before any, 0."""
        if values.numel():
            batch = float(values.detach().double().mean())
            if not self.count:
                self.mean = batch
            elif self.decay is None:
                self.mean += (batch - self.mean) * values.numel() / (self.count + values.numel())
            else:
                self.mean = self.decay * self.mean + (1 - self.decay) * batch
            self.count += values.numel()
        return torch.tensor(self.mean if self.count else 0.0, dtype=torch.float64)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"mean": self.mean if self.count else None, "count": self.count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.mean, self.count = float("nan") if state["mean"] is None else state["mean"], state["count"]
