"""What rows are compared with, found for a whole update: a mean of log-ratios, or of rewards, that all of them share."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import contrast
from mmalign.objectives import links, scores
from mmalign.objectives.parts import Part, Survey, live, under
from mmalign.objectives.state.running import RunningMean
from mmalign.objectives.terms.pairs import Order, Term, shared
from mmalign.types import Steps, UserError

LOG_RATIO = scores.ratio("total")
"""``log pi - log ref`` of each row, ``[B, 1]`` nats; of a bound, of each cell ``[B, T]``: every noise draw is a row of its own."""


def named(name: str, score: Part = LOG_RATIO) -> Survey:
    """What single rows are compared with, by name: ``mismatched``, ``batch`` (both ``max(0, mean score)``) or ``zero``; 0-d.

    The survey takes the verdicts ``[B, 1]``; rows of which nothing is known (verdict 0) do not count. score: of each row, its log-ratio.

    Errors: UserError for another name, or a table without the contrast.
    """
    if name not in ("mismatched", "batch", "zero"):
        raise UserError(f"baseline: got {name!r}, takes 'mismatched', 'batch' or 'zero'")

    def mean(steps: Steps, verdict: Tensor) -> Tensor:
        if name == "zero":
            return torch.zeros((), dtype=torch.float64)
        steps = under(steps, "mismatched") if name == "mismatched" else steps
        known = steps.each(lambda table: table & (verdict != 0) if table.dtype == torch.bool else table)
        return _mean_of_rows(score.of(known), known).clamp(min=0)

    return Survey(mean, frozenset({contrast("mismatched")}) if name == "mismatched" else frozenset())


def _mean_of_rows(values: Tensor, steps: Steps) -> Tensor:
    """Mean of ``values [B, 1 or T]`` over rows with a live cell, or over live cells, as a 0-d tensor; 0 without any."""
    counts = steps.mask if values.shape[1] > 1 else steps.mask.any(1, keepdim=True)
    return live(values, counts).sum() / counts.sum().clamp(min=1)


def running(*, beta: float) -> Survey:
    """The mean of ``beta * log-ratio`` over all single rows so far (BCO), 0-d; rows of which nothing is known do not count."""
    state = RunningMean()

    def mean(steps: Steps, verdict: Tensor) -> Tensor:
        ratio = LOG_RATIO.of(steps)
        counted = (steps.mask if ratio.shape[1] > 1 else steps.mask.any(1, keepdim=True)) & (verdict != 0)
        return state.update(beta * ratio[counted])

    return Survey(mean, state=state)


def classified(*, beta: float, shift: str) -> Term:
    """``-log sigmoid(b w - d) - log sigmoid(d - b l)``: the rows of a pair are classified, each by itself (BCO).

    shift: ``running``, d is the mean of ``beta * log-ratio`` over all rows so far; ``none``, 0.

    Errors: UserError for another shift.
    """
    links.positive(beta=beta)
    if shift not in ("running", "none"):
        raise UserError(f"shift: got {shift!r}, takes 'running' or 'none'")
    if shift == "none":
        of = lambda steps, order: links.classified(*order.sides(LOG_RATIO.of(steps)), beta=beta)  # noqa: E731
        return Term(of, LOG_RATIO.needs, score=LOG_RATIO)
    state = RunningMean()

    def shifted(steps: Steps, order: Order) -> Tensor:
        delta = order.sides(order.surveyed)[0] / beta
        better, worse = order.sides(LOG_RATIO.of(steps))
        return links.classified(better - delta, worse - delta, beta=beta)

    def mean(steps: Steps, order: Order) -> Tensor:
        counted = (shared(steps) & (order.sign != 0)).repeat_interleave(2, 0) & steps.mask
        ratio = LOG_RATIO.of(steps)
        known = ratio[counted] if ratio.shape[1] > 1 else ratio[counted.any(1)]
        return state.update(beta * known).expand(len(steps), 1)

    return Term(shifted, LOG_RATIO.needs, survey=Survey(mean, state=state), score=LOG_RATIO)
