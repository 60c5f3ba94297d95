"""What some policies can do besides (``Policy.gives`` says who), as protocols for whoever writes one; recipes ask for the word alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmalign.types import Policy, Rollout


@runtime_checkable
class Tooled(Protocol):
    """An environment with tools. schemas: of each one what chat templates take of it (``name``, ``description``, ``parameters``)."""

    schemas: Sequence[Mapping[str, Any]]


@runtime_checkable
class Joined(Protocol):
    """An environment in which the policy itself may play a part. awaits: whether it is to, since nobody else was named."""

    awaits: bool

    def join(self, speaker: Callable[..., list[Any]]) -> None:
        """Takes what the policy's reference answers to conversations: ``(prompts, seeds, **call) -> answers``."""


class Differentiable(Policy, Protocol):
    """A policy that gives ``adjoint``: rewards' gradients reach the steps of its samples."""

    def adjoints(  # all that a gradient depends on
        self, rollout: Rollout, how: Any, utility: Callable[..., Tensor], rng: torch.Generator, *, rows_at_once: int,
        seeds: Tensor | None = None,
    ) -> Rollout:  # fmt: skip
        """The rollout with the adjoints of its trained steps, which its ``mask`` then says; parameters get no gradient.

        how: a ``samplers.adjoints.RewardGradient``. utility: (outputs ``[R, ...]``, their rows ``[R]``) -> what is maximised, ``[R]``, with
        a graph; NaN: that row teaches nothing. seeds: ``[B, D]``, of the level and the noise of each row in each of ``how.differences``.
        A policy that ``gives`` latents takes ``latents=True``, hands these over besides then, and with ``decode=False`` None for outputs.
        """

    def noised(self, rollout: Rollout, column: int, noising: Any, seeds: Tensor, *, rows_at_once: int) -> tuple[Policy, Rollout]:
        """Clean estimates of the step ``column`` under the current parameters, noised, as rows of bounds, and the policy that scores
        those, with these same parameters. noising: a ``samplers.score_differences.Noising``. seeds: ``[B]``, of levels and noises. Where
        that policy is ``Featured`` it takes ``given=``, the prompts and outputs of given data, one beside each row."""


@runtime_checkable
class Featured(Protocol):
    """Who scores noised rows, and has features that a classifier can tell given data by."""

    def classifying(self, name: str) -> Any:
        """The policy that scores the same rows and gives ``realism``, its classifier's parameters among its own; one for each companion.
        Its ``classifier`` is a module."""


class Recalling(Policy, Protocol):
    """A policy that gives ``recall``: what a named reference says of a row depends on that row alone."""

    def digests(self, rollout: Rollout) -> list[bytes]:
        """What each row is told apart by, 16 bytes: rows with the same are scored alike, but for rounding."""

    def remembered(self, rollout: Rollout) -> dict[str, Tensor]:
        """Name -> ``[B, T]`` float64, 0 where ``mask`` is False: what ``remember`` has put into a rollout, or somebody who knew it."""


class Replaying(Policy, Protocol):
    """A policy that gives ``replay``: rows that it sampled can be kept, and scored again in a later step."""

    def kept(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Ids ``[B, T]`` int64 of each row's steps, filled up with anything, and how many there are, ``[B]``."""

    def revived(self, prompts: Sequence[Any], tokens: Tensor, lengths: Tensor, mask: Tensor) -> Rollout:
        """The rows again, from the prompt of each, what ``kept`` gave, and which steps count, ``[B, T]``."""


class Latent(Policy, Protocol):
    """A policy that gives ``latents``: its outputs are decoded from some, and its ``sample`` takes ``decode=False`` where nobody looks at
    outputs, which are then what its pipeline returns in place of them."""

    def latents(self, rollout: Rollout) -> Tensor:
        """Those of a rollout, ``[B, ...]``, as the denoiser sees them."""

    def generated(self, prompts: list[str], seeds: list[int], **call: Any) -> tuple[Any, Tensor]:
        """What ``generate`` gives, and its latents."""


class Traced(Policy, Protocol):
    """A policy that gives ``traced``: what it generates for users can be scored as it was drawn, step by step."""

    def traced(self, prompts: list[Any], seeds: list[int], **call: Any) -> Rollout:
        """What ``generate`` gives, as rows; their ``log_probs`` are NaN until they are scored, as those of given rows."""
