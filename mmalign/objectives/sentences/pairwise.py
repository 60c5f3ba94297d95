"""Methods for pairs: terms of a pair's loss put together into a ``types.Method``.

A **term** says what a pair costs if one of its rows is the better one: ``(steps, order) -> [N, 1 or T]``. The label enters in one place
alone: with p the probability that the better row is the better one, a pair's value is ``p term(order) + (1 - p) term(turned order)``,
the expected loss under its label. So every method takes soft labels, ties and flips, and a pair named the other way round is the
same pair.

**Layout.** Rows ``2k`` and ``2k + 1`` of the Steps are a pair, and the signal ``[2N, 1]`` says what is known of it: plus p for the
better row, minus p for the other, with p in 0.5..1; both 0 where nothing is known. So a tie is +-0.5, and a signal that is not of
this form, because a pair was torn apart, is refused. Methods that are told more of a row have further channels, ``[2N, 1, S]``.
A recipe brings the rows into order.

The value of a pair stands in all live cells of both rows, so that ``weights.sequence_mean`` makes the mean over pairs; a bound's
``[N, T]``, in the cells of their step where both rows have it. A pair with an empty row has value 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.objectives import links, scores, weights
from mmalign.objectives.parts import Part, live
from mmalign.types import Feedback, Loss, Method, Need, Steps, UserError

DENSITIES = frozenset({"token", "transition"})
ANY = DENSITIES | {"bound"}


class Order(NamedTuple):
    """Which row of each pair is taken to be the better one.

    sign: ``[N, 1]``, +1 the first, -1 the second, 0 for a pair of which nothing is known. strength: ``[N, 1]``, how likely that is.
    said: ``[2N, S - 1]``, what else the signal holds of each row.
    """

    sign: Tensor
    strength: Tensor
    said: Tensor

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``rows [2N, ...]`` of the better and of the worse row of each pair, ``[N, ...]`` each."""
        first = (self.sign >= 0).view(-1, *[1] * (rows.ndim - 1))
        return torch.where(first, rows[0::2], rows[1::2]), torch.where(first, rows[1::2], rows[0::2])

    def turned(self) -> Order:
        """The other order of every pair."""
        return self._replace(sign=torch.where(self.sign == 0, -1.0, -self.sign), strength=1 - self.strength)


class Term(NamedTuple):
    """What a pair costs in an order: ``of(steps, order) -> [N, 1 or T]``, differentiable, finite for rows of zeros.

    needs: as in ``types.Method``. score: what the rows are compared by, ``[2N, 1 or T]``, where there is such a thing; for metrics.
    """

    of: Callable[[Steps, Order], Tensor]
    needs: frozenset[Need] = frozenset()
    score: Part | None = None


def compared(score: Part, link: links.Compare, *, weight: Term | None = None) -> Term:
    """``weight * link(score of the better row, score of the worse row)``."""

    def of(steps: Steps, order: Order) -> Tensor:
        value = link(*order.sides(score.of(steps)))
        return value if weight is None else weight.of(steps, order) * value

    return Term(of, score.needs | (frozenset() if weight is None else weight.needs), score)


def times(factor: float, term: Term) -> Term:
    """A term, ``factor`` times. Raises UserError for a factor that is negative."""
    if factor < 0:
        raise UserError(f"weight: got {factor}, takes 0 or more")
    return term._replace(of=lambda steps, order: factor * term.of(steps, order))


def pairwise(
    *terms: Term,
    weigh: Callable[[Tensor], Tensor] = weights.sequence_mean,
    kinds: frozenset[str] = DENSITIES,
    said: Callable[[Feedback], Tensor] | None = None,
    reads: frozenset[Need] = frozenset(),
    survey: Callable[[Steps, Tensor], Tensor] | None = None,
    channels: int = 0,
    hard: bool = False,
    state: Any = None,
) -> Method:
    """``value of a pair = p (sum of terms) + (1 - p) (sum of terms in the turned order)``, the expected cost under the label.

    weigh, kinds, reads, state: as in ``types.Method``. said: Feedback -> ``[B, S]``, what terms are told of each row (``Order.said``);
    NaN: nothing is known of the row's pair. channels: how many more numbers of a row ``survey`` fills in. survey: as in
    ``types.Method``, of a signal ``[B, 1, 1 + S + channels]``. hard: a label counts by
    which row is the better one, however sure it is, and a tie says nothing.

    Raises UserError for a kind of steps that it does not accept, a signal that is no pairs', and where a term misses what it needs.
    """
    score = next((term.score for term in terms if term.score is not None), None)

    def signal(feedback: Feedback) -> Tensor:
        return _signal(feedback, said, channels, hard)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in kinds:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")
        order = ordered(steps, signal)
        turned = order.turned()
        value = order.strength * _sum(terms, steps, order) + turned.strength * _sum(terms, steps, turned)
        counted = shared(steps)
        cells = live(value.expand_as(counted), counted & (order.sign != 0)).repeat_interleave(2, 0)
        return Loss(live(cells, steps.mask), _metrics(steps, score, order, counted), steps.mask.any(1).sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=frozenset().union(*(term.needs for term in terms)),
        unit="pair",
        kinds=kinds,
        keep=lambda feedback: signal(feedback).flatten(1)[:, 0] != 0,
        reads=reads,
        survey=survey,
        state=state,
    )


def _sum(terms: Sequence[Term], steps: Steps, order: Order) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*(term.of(steps, order) for term in terms))).sum(0)


def strengths(feedback: Feedback) -> Tensor:
    """Plus p for the better row of a pair, minus p for the other, ``[B]`` float64; 0 for rows that nothing is known of.

    p is ``Feedback.strength``, 1 where there is none; each row in at most one pair. Raises UserError where that does not hold.
    """
    if feedback.pairs is None:
        raise UserError("Feedback.pairs: got None, a preference takes pairs of row numbers")
    rows = feedback.pairs.flatten()
    if len(rows.unique()) < len(rows):
        raise UserError("Feedback.pairs: got a row in more than one pair, takes each at most once")
    given = torch.ones(len(feedback.pairs)) if feedback.strength is None else feedback.strength
    strength = given.detach().double()
    if bool(((strength < 0) | (strength > 1)).any()):
        raise UserError("Feedback.strength: got values outside 0..1")
    first = torch.where(strength >= 0.5, strength, strength - 1).nan_to_num(0.0)
    found = torch.zeros(len(feedback.rewards), dtype=torch.float64)
    found[feedback.pairs[:, 0]], found[feedback.pairs[:, 1]] = first, -first
    return found


def partner(feedback: Feedback, values: Tensor) -> Tensor:
    """``values [B, ...]`` of the other row of each row's pair; NaN for rows in no pair."""
    found = torch.full_like(values, torch.nan)
    if feedback.pairs is not None:
        found[feedback.pairs[:, 0]], found[feedback.pairs[:, 1]] = values[feedback.pairs[:, 1]], values[feedback.pairs[:, 0]]
    return found


def _signal(feedback: Feedback, said: Callable[[Feedback], Tensor] | None, channels: int, hard: bool) -> Tensor:
    known = strengths(feedback)
    if hard:
        known = torch.where(known.abs() == 0.5, 0.0, known.sign())
    if said is None and not channels:
        return known[:, None]
    more = torch.zeros(len(known), 0, dtype=torch.float64) if said is None else said(feedback).detach().double()
    dumb = more.isnan().any(1)
    known = torch.where(dumb | partner(feedback, dumb.double()).eq(1), 0.0, known)
    more = torch.where((known != 0)[:, None], more, 0.0)
    return torch.cat([known[:, None], more, more.new_zeros(len(known), channels)], 1)[:, None]


def ordered(steps: Steps, signal: Tensor) -> Order:
    """The order that a signal ``[2N, 1]`` or ``[2N, 1, S]`` tells, after a look at the layout."""
    flat = signal.flatten(1)
    if signal.ndim not in (2, 3) or signal.shape[:2] != (len(steps), 1) or len(steps) % 2:
        raise UserError(f"signal: got shape {list(signal.shape)} for {len(steps)} rows, takes [{len(steps)}, 1] and whole pairs")
    first = flat[0::2, :1]
    if not torch.equal(first, -flat[1::2, :1]):
        raise UserError("signal: rows 2k and 2k + 1 are no pair; takes the two rows of each pair side by side")
    return Order(first.sign(), first.abs(), flat[:, 1:])


def whole(steps: Steps) -> Tensor:
    """``[N, 1]`` bool: pairs of which both rows have a live step."""
    rows = steps.mask.any(1, keepdim=True)
    return rows[0::2] & rows[1::2]


def shared(steps: Steps) -> Tensor:
    """``[N, T]`` bool: the columns in which a pair's value stands: all of a whole pair; of a bound, those that both rows have."""
    if steps.kind == "bound":
        return steps.mask[0::2] & steps.mask[1::2]
    return whole(steps).expand(-1, steps.mask.shape[1])


@torch.no_grad()
def _metrics(steps: Steps, score: Part | None, order: Order, counted: Tensor) -> dict[str, Tensor]:
    """Means over live rows, as 0-d tensors; over micro-batches they add up by the number of live rows.

    margin: by how much the better row's score is ahead. accuracy: pairs in which it is ahead; a margin of 0 and a pair that says
    nothing count one half. better, worse: log-ratio to ``ref`` (log-probability, where the method has no reference) of the better
    and the worse rows, nats, summed over steps: the margin can grow while both fall. All are 0 without a live row.
    """
    full, rows = whole(steps), steps.mask.any(1).sum().clamp(min=1)
    count = counted.sum(1, keepdim=True).clamp(min=1)
    cells = scores.log_ratio(steps) if "ref" in steps.refs else scores.log_prob(steps)
    up, down = order.sides(cells.sum(1, keepdim=True))

    def mean(values: Tensor) -> Tensor:
        return 2 * live(values, full).sum() / rows

    found = {"better": mean(up), "worse": mean(down)}
    if score is not None:
        better, worse = order.sides(score.of(steps))
        ahead = ((better - worse) * (order.sign != 0)).expand_as(counted)
        found["margin"] = mean(live(ahead, counted).sum(1, keepdim=True) / count)
        found["accuracy"] = mean(live((ahead.sign() + 1) / 2, counted).sum(1, keepdim=True) / count)
    return found
