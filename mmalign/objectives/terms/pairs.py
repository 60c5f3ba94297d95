"""Terms of a pair's loss: what it costs if one of its rows is the better one.

A **term** costs ``[N, 1]``, or ``[N, T]`` for a bound, for an order of the two rows. The label is the sentence's business: a term says what
one order costs, and a soft label is a mean over both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.objectives import links, parts
from mmalign.objectives.parts import Part
from mmalign.types import Feedback, Steps


class Order(NamedTuple):
    """Which row of each pair is taken to be the better one.

    sign: ``[N, 1 or T]``, +1 the first, -1 the second, 0 for a pair of which nothing is known; T of a reward model's scores that are
    labelled each by itself. strength: ``[N, 1 or T]``, how likely that is. extras, surveyed: ``[2N, E]`` and ``[2N, S]``, what the term
    that is asked was told of each row, and what it found.
    """

    sign: Tensor
    strength: Tensor
    extras: Tensor
    surveyed: Tensor

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``rows [2N, ...]`` of the better and of the worse row of each pair, ``[N, ...]`` each; ``[N, T]`` of ``[2N, 1]`` and T orders."""
        first = self.sign >= 0
        first = first.view(-1, *[1] * (rows.ndim - 1)) if first.shape[1] == 1 else first
        return torch.where(first, rows[0::2], rows[1::2]), torch.where(first, rows[1::2], rows[0::2])

    def turned(self) -> Order:
        """The other order of every pair."""
        return self._replace(sign=torch.where(self.sign == 0, -1.0, -self.sign), strength=1 - self.strength)


Gap = Callable[[Steps, Order], Tensor]


@dataclass(frozen=True)
class Term(parts.Term[Order]):
    """What a pair costs in an order: ``of(steps, order) -> [N, 1 or T]``.

    score: what the rows are compared by, ``[2N, 1 or T]``, where there is such a thing; for metrics. ahead: by how much the better row is
    ahead, ``[N, 1 or T]``, where that is no difference of scores. labels: what the term makes of the labels before anybody sees them.
    metrics: numbers of its own, or in place of the sentence's, ``[N, 1]`` by name, of which the log has the mean over pairs.
    """

    score: Part | None = None
    labels: Callable[[Feedback], Feedback] | None = None
    metrics: Callable[[Steps, Order], dict[str, Tensor]] | None = None
    ahead: Gap | None = None

    @property
    def gap(self) -> Gap | None:
        """By how much the better row of each pair is ahead; None of a term that compares nothing."""
        score = self.score
        if self.ahead is not None or score is None:
            return self.ahead
        return lambda steps, order: torch.sub(*order.sides(score.of(steps)))


def compared(score: Part, link: links.Compare, *, weight: Term | None = None) -> Term:
    """``weight * link(score of the better row, score of the worse row)``.

    link: a comparison of two scores. weight: a term that multiplies it, or None.
    """
    if weight is None:
        return Term(lambda steps, order: link(*order.sides(score.of(steps))), score.needs, score=score)
    of = lambda steps, order: weight.of(steps, order) * link(*order.sides(score.of(steps)))  # noqa: E731
    return replace(weight, of=of, needs=score.needs | weight.needs, score=score)


def times(factor: float, term: Term) -> Term:
    """A term, ``factor`` times.

    factor: 0 or more. term: of a pair.

    Errors: UserError for a factor that is negative.
    """
    links.not_negative(weight=factor)
    return replace(term, of=lambda steps, order: factor * term.of(steps, order))


def whole(steps: Steps) -> Tensor:
    """``[N, 1]`` bool: pairs of which both rows have a live step."""
    rows = steps.mask.any(1, keepdim=True)
    return rows[0::2] & rows[1::2]


def shared(steps: Steps, *, by_step: bool = False) -> Tensor:
    """``[N, T]`` bool: the columns in which a pair's value stands: all of a whole pair; of a bound, scores, or by step, those of both.

    by_step: whether steps are compared each by itself.
    """
    if steps.kind in parts.APART or by_step:
        return steps.mask[0::2] & steps.mask[1::2]
    return whole(steps).expand(-1, steps.mask.shape[1])
