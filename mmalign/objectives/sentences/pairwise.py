"""Methods for pairs: terms of a pair's loss put together into a ``types.Method``.

A **term** (``terms.pairs``) says what a pair costs if one of its rows is the better one: ``(steps, order) -> [N, 1 or T]``. The label
enters in one place alone: with p the probability that the better row is the better one, a pair's value is
``p term(order) + (1 - p) term(turned order)``, the expected loss under its label. So every method takes soft labels, ties and flips, and
a pair named the other way round is the same pair.

**Layout.** Rows ``2k`` and ``2k + 1`` of the Steps are a pair, and the signal ``[2N, 1]`` says what is known of it: plus p for the
better row, minus p for the other, with p in 0.5..1; both 0 where nothing is known. So a tie is +-0.5, and a signal that is not of
this form, because a pair was torn apart, is refused. Methods whose terms are told more of a row, or find more, have further channels,
``[2N, 1, 1 + E + S]``, of which each term sees its own (``layout``). Pairs that people compared in each of T scores by itself have T such
labels in place of the one, ``[2N, 1, T + E + S]``. A recipe brings the rows into order.

The value of a pair stands in all live cells of both rows, so that ``weights.sequence_mean`` makes the mean over pairs; a bound's
``[N, T]``, and of what looks at steps one by one, in the cells of their step where both rows have it. A pair with an empty row has value 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import scores, weights
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import DENSITIES, live, refuse_kind
from mmalign.objectives.sentences.layout import Layout
from mmalign.objectives.terms.pairs import Gap, Order, Term, shared, whole
from mmalign.types import Feedback, Loss, Method, Move, Steps, UserError

CERTAIN = 1e-12  # of a probability, how near to 0 and 1 its logarithm is taken


def pairwise(
    *terms: Term,
    weigh: Callable[[Tensor], Tensor] = weights.sequence_mean,
    kinds: frozenset[str] = DENSITIES,
    moves: tuple[Move, ...] = (),
    sampled_by: str = "current",
    by_step: bool = False,
    numbers: int = 1,
    wins: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Method:
    """``value of a pair = p (sum of terms) + (1 - p) (sum of terms in the turned order)``, the expected cost under the label.

    weigh, moves, sampled_by, by_step, numbers, wins: as in ``types.Method``. kinds: of steps, as far as all terms take them. Where
    something that a term is told of a row is NaN, nothing is known of the row's pair.

    Errors: UserError for a kind of steps that it does not accept, a signal that is no pairs', and where a term misses what it needs.
    """
    layout, gap = Layout(terms), next((term.gap for term in terms if term.gap is not None), None)
    kinds = layout.kinds(kinds)

    def orders(steps: Steps, signal: Tensor) -> list[Order]:
        order, others = ordered(steps, signal, layout.width())
        return [order._replace(extras=extras, surveyed=surveyed) for extras, surveyed in layout.split(others)]

    def signal(feedback: Feedback) -> Tensor:
        for term in terms:
            feedback = feedback if term.labels is None else term.labels(feedback)
        known = comparisons.strengths_by_score(feedback)
        extras = layout.extras(feedback)
        if not extras:
            return known if known.shape[1] == 1 else known[:, None]
        told = torch.cat(extras, 1)
        silent = told.isnan().any(1)
        silent = silent | comparisons.partner(feedback, silent.double()).eq(1)
        known = torch.where(silent[:, None], 0.0, known)
        return torch.cat([known, torch.where((known != 0).any(1, keepdim=True), told, 0.0)], 1)[:, None]

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        order, others = ordered(steps, signal, layout.width(surveyed=False))
        surveyed = layout.survey(lambda extras, surveyed: order._replace(extras=extras, surveyed=surveyed), steps, others)
        return torch.cat([signal.flatten(1), *(values.to(signal) for values in surveyed)], 1)[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        each = orders(steps, signal)
        order, turned = each[0], each[0].turned()
        value = order.strength * _cost(steps, each) + turned.strength * _cost(steps, [own.turned() for own in each])
        counted = shared(steps, by_step=by_step)
        cells = live(value.expand_as(counted), counted & (order.sign != 0)).repeat_interleave(2, 0)
        metrics = _metrics(steps, gap, order, counted) | _own_metrics(steps, terms, each)
        compared = _compared(steps, gap, wins, order, counted)
        return Loss(live(cells, steps.mask), metrics, steps.mask.any(1).sum(), compared)

    def _cost(steps: Steps, each: list[Order]) -> Tensor:
        costs = [term.of(steps, order) for term, order in zip(terms, each, strict=True)]
        return torch.stack(torch.broadcast_tensors(*costs)).sum(0)

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=layout.needs(),
        unit="pair",
        kinds=kinds,
        keep=lambda feedback: _told(signal(feedback), layout.width(surveyed=False)).any(1),
        reads=layout.reads(),
        survey=survey if layout.surveys else None,
        survey_needs=layout.survey_needs(),
        state=layout.state(),
        moves=moves,
        sampled_by=sampled_by,
        by_step=by_step,
        numbers=numbers,
        wins=wins,
    )


def ordered(steps: Steps, signal: Tensor, others: int = 0) -> tuple[Order, Tensor]:
    """The order that a signal ``[2N, 1]`` or ``[2N, 1, S]`` tells, after a look at the layout, and the other numbers ``[2N, others]``.

    signal: as in the module's layout. others: how many of its numbers are none of the labels.
    """
    if signal.ndim not in (2, 3) or signal.shape[:2] != (len(steps), 1) or len(steps) % 2:
        raise UserError(f"signal: got shape {list(signal.shape)} for {len(steps)} rows, takes [{len(steps)}, 1] and whole pairs")
    flat = signal.flatten(1)
    labels = flat[:, : flat.shape[1] - others]
    if labels.shape[1] not in (1, steps.mask.shape[1]):
        takes = f"takes 1 or {steps.mask.shape[1]} labels, and {others} others"
        raise UserError(f"signal: got {flat.shape[1]} numbers of a row, {takes}; no survey was made before micro-batches?")
    first = labels[0::2]
    if not torch.equal(first, -labels[1::2]):
        raise UserError("signal: rows 2k and 2k + 1 are no pair; takes the two rows of each pair side by side")
    return Order(first.sign(), first.abs(), flat[:, :0], flat[:, :0]), flat[:, labels.shape[1] :]


def _told(signal: Tensor, others: int) -> Tensor:
    """``[B, 1 or T]`` bool: of which labels of a row something is known."""
    flat = signal.flatten(1)
    return flat[:, : flat.shape[1] - others] != 0


@torch.no_grad()
def _metrics(steps: Steps, gap: Gap | None, order: Order, counted: Tensor) -> dict[str, Tensor]:
    """Means over live rows, as 0-d tensors; over micro-batches they add up by the number of live rows.

    margin: by how much the better row's score is ahead. accuracy: pairs in which it is ahead; a margin of 0 and a pair that says
    nothing count one half. better, worse: log-ratio to ``ref`` (log-probability, where the method has no reference) of the better
    and the worse rows, nats, summed over the steps that are seen at once: the margin can grow while both fall. All are 0 without a live
    row. Where scores are labelled each by itself, those of a pair that are count alike.

    Beside a reference, whether what DPO assumes holds: that who is held to it comes to prefer the better rows. With g the better row's
    log-probability less the worse one's: violation, reference_violation: pairs with g < 0, of the policy and of the reference;
    ``..._nats``: how far below 0, a mean over all pairs (https://arxiv.org/abs/2605.20834).
    """
    full, rows = whole(steps), steps.mask.any(1).sum().clamp(min=1)
    told = counted & (order.sign != 0)
    count = told.sum(1, keepdim=True)
    cells = scores.log_ratio(steps) if "ref" in steps.refs else scores.log_prob(steps)
    up, down = (side.sum(1, keepdim=True) for side in order.sides(cells))

    def mean(values: Tensor) -> Tensor:
        return 2 * live(values, full).sum() / rows

    def over_told(values: Tensor) -> Tensor:
        return live(values.expand_as(told), told).sum(1, keepdim=True) / count.clamp(min=1)

    metrics = {"better": mean(up), "worse": mean(down)}
    if "ref" in steps.refs:
        own = torch.sub(*(side.sum(1, keepdim=True) for side in order.sides(scores.log_prob(steps))))
        for name, behind in (("violation", -own), ("reference_violation", up - down - own)):
            metrics |= {name: mean((behind > 0).double()), f"{name}_nats": mean(behind.clamp(min=0))}
    if gap is not None:
        ahead = gap(steps, order)
        metrics["margin"] = mean(over_told(ahead))
        right = torch.where(count > 0, over_told((ahead.sign() + 1) / 2), 0.5)
        metrics["accuracy"] = mean(live(right, counted.any(1, keepdim=True)))
    return metrics


@torch.no_grad()
def _compared(
    steps: Steps, gap: Gap | None, wins: Callable[[Tensor, Tensor], Tensor] | None, order: Order, counted: Tensor
) -> Tensor | None:
    """``types.Loss.compared``: of each pair that says something, in each dimension or step that is labelled or compared by itself."""
    if wins is not None:
        better, worse = order.sides(steps.log_probs)
        ahead = torch.logit(wins(better, worse), eps=CERTAIN)
    elif gap is not None:
        ahead = gap(steps, order)
    else:
        return None
    told, strength = counted & (order.sign != 0), order.strength
    if ahead.shape[1] != told.shape[1]:  # one for a pair, whatever it is made of
        told, strength = told.any(1, keepdim=True).expand_as(ahead), strength[:, :1]
    return torch.stack([ahead.expand_as(told)[told], strength.expand_as(told)[told]], 1)


@torch.no_grad()
def _own_metrics(steps: Steps, terms: tuple[Term, ...], each: list[Order]) -> dict[str, Tensor]:
    """What terms measure themselves, as 0-d means over live rows; pairs without a whole row are 0 there, as in ``_metrics``."""
    full, rows = whole(steps), steps.mask.any(1).sum().clamp(min=1)
    owns = [term.metrics(steps, order) for term, order in zip(terms, each, strict=True) if term.metrics is not None]
    return {name: 2 * live(values, full).sum() / rows for own in owns for name, values in own.items()}
