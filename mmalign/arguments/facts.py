"""What rewards, combinations and policies may say of themselves. They are asked by these types; plain functions are none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Named(Protocol):
    """A reward that says what it is called; others go by their key."""

    name: str


@runtime_checkable
class Differentiable(Protocol):
    """A reward that says whether a gradient arrives at what it scores; of others it is not known."""

    differentiable: bool


@runtime_checkable
class OfLatents(Protocol):
    """A reward that says whether it scores the latents that outputs are decoded from, in place of the outputs."""

    of_latents: bool


@runtime_checkable
class OfPolicy(Protocol):
    """An oracle that says whether it asks the policy that is trained, which it is then given as ``policy=``."""

    of_policy: bool


@runtime_checkable
class Stepped(Protocol):
    """A reward that may change as training goes, and is told the number of each step before it."""

    at: Callable[[int], None] | None


@runtime_checkable
class Reading(Protocol):
    """A reward, judge, oracle or metric that says which columns of the prompts it reads; of others, keywords without a default are."""

    reads: Iterable[str]


@runtime_checkable
class Stateful(Protocol):
    """A combination or a reward that keeps something from rollout to rollout, which belongs into checkpoints; None: nothing."""

    state: Any


@runtime_checkable
class Weighted(Protocol):
    """A combination that is a sum, and says what each reward counts for in it."""

    weights: Mapping[str, float]


@runtime_checkable
class Following(Protocol):
    """A combination that may learn from the policy gradient of each reward by itself (``combinations._parts.ByGradient``); None: it does
    not."""

    gradients: Any


@runtime_checkable
class Hearing(Protocol):
    """A combination that may take in the run's evaluations so far, a row of numbers by name each, before every step; None: it does not."""

    hears: Callable[[Sequence[Mapping[str, Any]]], None] | None


@runtime_checkable
class Tolerant(Protocol):
    """A policy that says by how many nats of one number preflight lets a step score differently at replay; 1e-6 for others."""

    tolerance: float


@runtime_checkable
class Stepping(Protocol):
    """A policy that says, before it samples, which steps of its first rollout will be random: ``random_steps(prompts) -> [T]`` bool.

    Errors: UserError for what no rollout could be made of.
    """

    random_steps: Callable[[Any], Any]


def of_latents(reward: Any) -> bool:
    """Whether a reward or judge scores latents; others score outputs."""
    return isinstance(reward, OfLatents) and reward.of_latents


def asks_policy(oracle: Any) -> bool:
    """Whether an oracle asks the policy that is trained."""
    return isinstance(oracle, OfPolicy) and oracle.of_policy


@runtime_checkable
class Structured(Protocol):
    """A policy whose rollouts have denoising steps of several kinds, which a group and a run have to fit."""

    def refuse_structure(self, method: Any, group_size: int, steps: int) -> None:
        """Errors: UserError where branches of rows do not fit a group, or the method; before anything is sampled."""


def called(reward: Any, key: str) -> str:
    """What a reward is called in a line to the user."""
    return reward.name if isinstance(reward, Named) else key
