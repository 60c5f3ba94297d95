"""What every objective is made of: pieces that say what they need, exponentials that stay finite, and means over live cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from mmalign.needs import CHANGED, DT, NOISE, PHRASE, SEGMENT, SLOPE, STD
from mmalign.types import Feedback, Need, Steps, Unit, UserError

CAP = 20.0  # nats; e^20 = 4.9e8 is far outside any trust region, and its square still fits into the float32 of a gradient norm


FACTS = frozenset({STD, SLOPE, DT, NOISE, CHANGED, PHRASE, SEGMENT})  # the tables that have no gradient, of those with no name
DENSITIES = frozenset({"token", "transition"})
ANY = DENSITIES | {"bound"}
SCORES = frozenset({"score"})
APART = SCORES | {"bound"}  # kinds whose columns are no factors of one density: each is compared by itself
Known = TypeVar("Known", contravariant=True)


class Part(NamedTuple):
    """A function of a table and what it asks of it.

    of: Steps -> ``[B, T]``, 0 outside the mask, whatever the dead cells hold.
    needs, unit: as in ``types.Method``; a method needs what its parts need, and keeps together what they keep together.
    """

    of: Callable[[Steps], Tensor]
    needs: frozenset[Need] = frozenset()
    unit: Unit = "cell"


class Climb(NamedTuple):
    """Where an update's gradient is taken: ``rate`` along the gradient of ``sum(weight * of(steps, signal))`` away, from where it is
    then subtracted. of: Steps of a micro-batch and their signal -> values as a loss has them, differentiable."""

    of: Callable[[Steps, Tensor], Tensor]
    rate: float


class Replay(NamedTuple):
    """What is learned from rows of earlier rollouts, beside the rollout at hand. method: makes their signal and loss anew in every update;
    it reads and needs of them what a policy says of kept rows. rows: of an update, this rollout's among those that they are drawn from.
    capacity: rows that are kept, the newest."""

    method: Any
    rows: int
    capacity: int


class Reading(NamedTuple):
    """A function of the feedback on a whole rollout, what it reads of the steps, and what it keeps.

    of: Feedback -> numbers of each row or step, without gradient. width: how many, where there may be several. reads, state: as in
    ``types.Method``.
    """

    of: Callable[[Feedback], Tensor]
    reads: frozenset[Need] = frozenset()
    width: int = 1
    state: Any = None


class Survey(NamedTuple):
    """What is found out about all rows of an update before its micro-batches, without gradient.

    of: (the table of all rows, what the sentence knows of them) -> ``width`` numbers of each. needs: besides the method's own. state:
    as in ``types.Method``.
    """

    of: Callable[[Steps, Any], Tensor]
    needs: frozenset[Need] = frozenset()
    width: int = 1
    state: Any = None


@dataclass(frozen=True)
class Term(Generic[Known]):
    """A piece of a loss, whole: what it adds, and all that it needs to be told, finds out and keeps. A sentence puts several together.

    of: (Steps, what the sentence knows of the rows) -> values, differentiable, finite for rows of zeros. What the sentence knows comes
        with this term's own ``extras`` and ``surveyed`` numbers, and with nobody else's.
    needs, unit: as in ``types.Method``. kinds: the kinds of steps that it makes sense for.
    extras: what it is told of each row. survey: what it finds out about all rows of an update.
    """

    of: Callable[[Steps, Known], Tensor]
    needs: frozenset[Need] = frozenset()
    unit: Unit = "cell"
    kinds: frozenset[str] = ANY | SCORES
    extras: Reading | None = None
    survey: Survey | None = None


def refuse_kind(steps: Steps, kinds: frozenset[str]) -> None:
    """Refuses steps of another kind than those.

    kinds: those that are taken.

    Errors: UserError for others.
    """
    if steps.kind not in kinds:
        raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")


def held(steps: Steps, need: Need) -> Tensor:
    """The table ``[B, T]`` of that need, as it is; references, and facts, without gradient. Errors: UserError where it is not there."""
    group, name = need.kind, need.name or need.kind
    if group == "absolute":
        group, name = "facts", str(need)
    elif not need.name:
        group = "facts" if need in FACTS else "terms"
    tables: Mapping[str, Tensor] = getattr(steps, group)
    if name not in tables:
        raise UserError(f"Steps.{group}: got {sorted(tables)}, this method takes {name!r}")
    return tables[name].detach() if group in ("refs", "facts") else tables[name]


def under(steps: Steps, name: str) -> Steps:
    """The same rows under the contrast of that name. Errors: UserError where it is not there."""
    if name not in steps.contrasts:
        raise UserError(f"Steps.contrasts: got {sorted(steps.contrasts)}, this method takes {name!r}")
    return steps.contrasts[name]


def read(feedback: Feedback, need: Need) -> Tensor:
    """The table ``[B, T]`` of a rollout's steps that a method reads, without gradient. Errors: UserError where it was not given."""
    if need not in feedback.tables:
        raise UserError(f"Feedback.tables: got {', '.join(map(str, sorted(feedback.tables))) or 'none'}, this method reads {need}")
    return feedback.tables[need].detach()


def choose(what: str, name: str, parts: Mapping[str, Part]) -> Part:
    """The part of that name.

    what: the setting that errors name. parts: name -> part.

    Errors: UserError, with the accepted names, for another.
    """
    if name not in parts:
        raise UserError(f"{what}: got {name!r}, takes one of {', '.join(parts)}")
    return parts[name]


def live(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where the mask is true, 0 elsewhere; NaN in a dead cell reaches neither the value nor the gradient.

    Dead cells must go before any function whose derivative could be infinite there: 0 * inf is NaN in a backward pass.

    values: ``[B, T]``, whatever stands in dead cells.
    """
    return torch.where(mask, values, torch.zeros_like(values))


def bounded_exp(x: Tensor) -> Tensor:
    """``exp(x)`` up to CAP nats, its tangent ``e^CAP (1 + x - CAP)`` beyond: finite, convex, never without a gradient.

    Clamping instead (verl, at 20 nats) has the same value at the cap but no gradient beyond it, so that the policy that has
    run away farthest is the one that is not pulled back.

    x: nats.
    """
    return torch.exp(x.clamp(max=CAP)) + math.exp(CAP) * torch.relu(x - CAP)


def bounded_expm1(x: Tensor) -> Tensor:
    """``exp(x) - 1`` without cancellation near 0, and with the tangent of ``bounded_exp`` beyond CAP nats.

    x: nats.
    """
    return torch.expm1(x.clamp(max=CAP)) + math.exp(CAP) * torch.relu(x - CAP)


def live_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over live cells as a 0-d tensor; 0 where no cell is live.

    values: ``[B, T]``.
    """
    return live(values, mask).sum() / mask.sum().clamp(min=1)
