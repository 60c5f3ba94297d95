"""What every objective is made of: a part that says what it needs, exponentials that stay finite, and means over live cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.types import Feedback, Need, Steps, Unit, UserError

CAP = 20.0  # nats; e^20 = 4.9e8 is far outside any trust region, and its square still fits into the float32 of a gradient norm


class Part(NamedTuple):
    """A function of a table and what it asks of it.

    of: Steps -> ``[B, T]``, 0 outside the mask, whatever the dead cells hold.
    needs, unit: as in ``types.Method``; a method needs what its parts need, and keeps together what they keep together.
    """

    of: Callable[[Steps], Tensor]
    needs: frozenset[Need] = frozenset()
    unit: Unit = "cell"


def choose(what: str, name: str, parts: Mapping[str, Part]) -> Part:
    """The part of that name. Raises UserError, with the accepted names, for a name that is not there."""
    if name not in parts:
        raise UserError(f"{what}: got {name!r}, takes one of {', '.join(parts)}")
    return parts[name]


def read(feedback: Feedback, need: Need) -> Tensor:
    """The table ``[B, T]`` of a rollout's steps that a method reads, without gradient. Errors: UserError where it was not given."""
    if need not in feedback.tables:
        raise UserError(f"Feedback.tables: got {', '.join(map(str, sorted(feedback.tables))) or 'none'}, this method reads {need}")
    return feedback.tables[need].detach()


def live(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is true, 0 elsewhere; NaN in a dead cell reaches neither the value nor the gradient.

    Dead cells must go before any function whose derivative could be infinite there: 0 * inf is NaN in a backward pass.
    """
    return torch.where(mask, values, torch.zeros_like(values))


def bounded_exp(x: Tensor) -> Tensor:
    """``exp(x)`` up to CAP nats, its tangent ``e^CAP (1 + x - CAP)`` beyond: finite, convex, never without a gradient.

    Clamping instead (verl, at 20 nats) has the same value at the cap but no gradient beyond it, so that the policy that has
    run away farthest is the one that is not pulled back.
    """
    return torch.exp(x.clamp(max=CAP)) + math.exp(CAP) * torch.relu(x - CAP)


def bounded_expm1(x: Tensor) -> Tensor:
    """``exp(x) - 1`` without cancellation near 0, and with the tangent of ``bounded_exp`` beyond CAP nats."""
    return torch.expm1(x.clamp(max=CAP)) + math.exp(CAP) * torch.relu(x - CAP)


def live_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values [B, T]`` over live cells as a 0-d tensor; 0 where no cell is live."""
    return live(values, mask).sum() / mask.sum().clamp(min=1)
