"""What transforms and combinations of rewards share: rewards by name for the rows of a rollout, and state that is checkpointed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mmalign.types import UserError

Missing = Literal["row", "rest"]


class Rows(NamedTuple):
    """The rows that rewards were asked about: ``group [B]`` int64 and B ``prompts``."""

    group: Tensor
    prompts: Sequence[Any]


class State(Protocol):
    """What a transform or a combination keeps from rollout to rollout; in every checkpoint."""

    def learn(self, parts: Mapping[str, Tensor], rows: Rows) -> None:
        """Takes in the rewards of a training rollout, before they are combined."""

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""


@dataclass(frozen=True)
class Transform:
    """One reward into another: ``of(scores [B], rows) -> [B]``; NaN stays NaN. ``make``: a state of its own for each reward."""

    name: str
    of: Callable[[Tensor, Rows, Any], Tensor]
    make: Callable[[], Any] | None = None


Transforms = Mapping[str, Transform | Sequence[Transform]]
"""Reward -> what is done to it first, one or several in their order."""


class ByGradient(Protocol):
    """What a combination asks of the policy gradients ``g_k`` of its rewards, each by itself (``training.evaluations.inner_products``)."""

    @property
    def values(self) -> Mapping[str, float]:
        """The weights as they are."""

    def apart(self, parts: Mapping[str, Tensor], group: Tensor, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """The scores ``[B]`` that each gradient is of, by name."""
        ...

    def follow(self, names: Sequence[str], inner: Tensor) -> None:
        """Takes in ``<g_k, g_j>``, ``[K, K]`` in the order of the names, before the rollout's updates: it counts from the next one on."""


@dataclass(frozen=True)
class Combination:
    """Rewards by name into one number for each row, ``(parts {name: [B]}, group [B], prompts) -> [B]`` float64; NaN is missing.

    learn: whether the state may take these rows in; only training does. state: None, or what is checkpointed. weights: what each reward
    counts for where it is a sum; rewards of single steps count for as much, and for 1 where there are none. gradients: what it asks of
    the policy gradient of each reward, or None. hears: takes in the run's evaluations so far, a row each, before the rollout; or None.
    """

    name: str
    of: Callable[[Mapping[str, Tensor], Rows], Tensor]
    state: State | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    gradients: ByGradient | None = None
    hears: Callable[[Sequence[Mapping[str, Any]]], None] | None = None

    def __call__(self, parts: Mapping[str, Tensor], group: Tensor, prompts: Sequence[Any], *, learn: bool = False) -> Tensor:
        rows = Rows(group, prompts)
        if learn and self.state is not None:
            self.state.learn({name: values.detach() for name, values in parts.items()}, rows)
        return self.of(parts, rows)


class Chain:
    """The transforms of some rewards, applied in their order; a State."""

    def __init__(self, owner: str, transforms: Transforms | None):
        self.owner = owner
        self.steps: dict[str, list[tuple[Transform, Any]]] = {}
        for name, entry in (transforms or {}).items():
            listed: list[Any] = list(entry) if isinstance(entry, (list, tuple)) else [entry]
            if odd := [step for step in listed if not isinstance(step, Transform)]:
                raise UserError(f"{owner}.transforms.{name}: got {odd[0]!r}, takes {{use: z_score, ...}} or a list of such")
            self.steps[name] = [(step, step.make() if step.make else None) for step in listed]

    def apply(self, parts: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        """The parts, transformed ones in their place."""
        if unknown := sorted(set(self.steps) - set(parts)):
            raise UserError(f"{self.owner}.transforms.{unknown[0]}: no such reward; takes {', '.join(parts)}")
        scores = dict(parts)
        for name, steps in self.steps.items():
            for step, state in steps:
                scores[name] = step.of(scores[name], rows, state)
        return scores

    def learn(self, parts: Mapping[str, Tensor], rows: Rows) -> None:
        """Every step's state takes in what the steps before it make of the reward."""
        for name, steps in self.steps.items():
            values = parts[name]
            for step, state in steps:
                if state is not None:
                    state.update(values)
                values = step.of(values, rows, state)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {name: [None if state is None else state.dump() for _, state in steps] for name, steps in self.steps.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        for name, steps in self.steps.items():
            for (_, owner), kept in zip(steps, state[name], strict=True):
                if owner is not None:
                    owner.load(kept)


class Both:
    """A chain, and what learns from rewards as the chain leaves them; a State."""

    def __init__(self, chain: Chain, own: State):
        self.chain, self.own = chain, own

    def learn(self, parts: Mapping[str, Tensor], rows: Rows) -> None:
        """The chain first."""
        self.chain.learn(parts, rows)
        self.own.learn(self.chain.apply(parts, rows), rows)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"transforms": self.chain.dump(), "own": self.own.dump()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``dump`` gave."""
        self.chain.load(state["transforms"])
        self.own.load(state["own"])


def chosen(owner: str, key: str, names: Iterable[str] | None, parts: Mapping[str, Tensor]) -> list[str]:
    """The rewards that are named, or all. Errors: UserError for one that is not there, and for none."""
    chosen_names = list(parts) if names is None else list(names)
    if unknown := [name for name in chosen_names if name not in parts]:
        raise UserError(f"{owner}.{key}: got {unknown[0]!r}, takes rewards that are there: {', '.join(parts)}")
    if not chosen_names:
        raise UserError(f"{owner}.{key}: got none, takes at least one of {', '.join(parts)}")
    return chosen_names


def table(parts: Mapping[str, Tensor], names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(scores ``[K, B]`` with 0 where one is missing, whether it is known ``[K, B]``)."""
    stacked = torch.stack([parts[name] for name in names])
    known = ~stacked.isnan()
    return torch.where(known, stacked, torch.zeros_like(stacked)), known


def usable(known: Tensor, missing: Missing) -> Tensor:
    """Rows with a score, ``[B]``: where all are known (``row``), or at least one (``rest``)."""
    return known.all(0) if missing == "row" else known.any(0)


def or_missing(values: Tensor, there: Tensor) -> Tensor:
    """The values where they are there, NaN elsewhere."""
    return torch.where(there, values, torch.full_like(values, math.nan))


def refuse_missing(owner: str, missing: str) -> None:
    """UserError for another word than ``row`` and ``rest``."""
    if missing not in ("row", "rest"):
        raise UserError(f"{owner}.missing: got {missing!r}, takes row or rest")
