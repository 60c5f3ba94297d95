"""BCO's comparison of pairs: rows are classified against a mean of rewards, which is found for a whole update and kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import Order, Term, ordered, shared
from mmalign.objectives.state.running import RunningMean
from mmalign.types import Steps, UserError


def classified(*, beta: float, shift: str) -> tuple[Term, dict[str, Any]]:
    """``-log sigmoid(b w - d) - log sigmoid(d - b l)`` and what ``pairwise`` has to know of it: survey, channel and state.

    shift: ``running``, d is the mean of ``beta * log-ratio`` over all rows so far, in the last channel of the signal; ``none``, 0.
    """
    links.positive(beta=beta)
    if shift not in ("running", "none"):
        raise UserError(f"shift: got {shift!r}, takes 'running' or 'none'")
    score, mean = scores.ratio(), RunningMean()

    def of(steps: Steps, order: Order) -> Tensor:
        delta = order.sides(order.said[:, -1:])[0] / beta if shift == "running" else 0.0
        better, worse = order.sides(score.of(steps))
        return links.classified(better - delta, worse - delta, beta=beta)

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        counted = (shared(steps) & (ordered(steps, signal).sign != 0)).repeat_interleave(2, 0) & steps.mask
        found = score.of(steps)
        known = found[counted] if found.shape[1] > 1 else found[counted.any(1)]
        delta = mean.update(beta * known)
        return torch.cat([signal[..., :-1], delta.to(signal).expand_as(signal[..., -1:])], -1)

    extra = {"survey": survey, "channels": 1, "state": mean} if shift == "running" else {}
    return Term(of, score.needs, score), extra
