"""Numbers that a method keeps from update to update: explicit, and in every checkpoint (``dump`` and ``load``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Named:
    """A number for each name that was met (of an annotator, of a record), ``start`` where nothing has been put in."""

    def __init__(self, start: float = float("nan")):
        self.start, self.places, self.values = start, dict[str, int](), list[float]()

    def find(self, names: Sequence[str]) -> Tensor:
        """The place of each name, ``[B]`` float64; new ones are added at the end."""
        for name in names:
            if self.places.setdefault(name, len(self.values)) == len(self.values):
                self.values.append(self.start)
        return torch.tensor([self.places[name] for name in names], dtype=torch.float64)

    def read(self, places: Tensor) -> Tensor:
        """Numbers ``[...]`` float64 at places ``[...]``."""
        return torch.tensor([self.values[place] for place in places.flatten().long().tolist()], dtype=torch.float64).view(places.shape)

    def write(self, places: Tensor, values: Tensor) -> None:
        """Puts numbers in place of those that were there."""
        for place, value in zip(places.flatten().long().tolist(), values.flatten().tolist(), strict=True):
            self.values[place] = value

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"names": list(self.places), "values": [None if value != value else value for value in self.values]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.places = {name: place for place, name in enumerate(state["names"])}
        self.values = [float("nan") if value is None else value for value in state["values"]]


class Recent:
    """The numbers of each name's last ``count`` rollouts."""

    def __init__(self, count: int):
        self.count, self.values = count, dict[str, list[list[float]]]()

    def of(self, names: Sequence[str], group: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of the names of rows ``[B]``, ``[P]`` float64, and the groups ``[P]`` that it belongs to; each name once a group."""
        groups = {number: self.values.get(name, []) for name, number in zip(names, group.tolist(), strict=True)}
        kept = [(value, number) for number, rollouts in groups.items() for rollout in rollouts for value in rollout]
        values = torch.tensor([value for value, _ in kept], dtype=torch.float64)
        return values, torch.tensor([number for _, number in kept], dtype=torch.int64)

    def add(self, names: Sequence[str], values: Tensor) -> None:
        """Takes in a rollout's numbers ``[B]``, those of one name together; NaN is left out."""
        rollout = dict[str, list[float]]()
        for name, value in zip(names, values.tolist(), strict=True):
            if value == value:
                rollout.setdefault(name, []).append(value)
        for name, numbers in rollout.items():
            self.values[name] = [*self.values.get(name, []), numbers][-self.count :] if self.count else []

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"values": {name: [list(rollout) for rollout in rollouts] for name, rollouts in self.values.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.values = {name: [list(rollout) for rollout in rollouts] for name, rollouts in state["values"].items()}


class Kept:
    """One number: a coefficient that is fitted, or how many updates there were."""

    def __init__(self, value: float):
        self.value = value

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"value": self.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.value = state["value"]


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
