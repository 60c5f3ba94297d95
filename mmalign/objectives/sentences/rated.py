"""Methods for reward models of single rows: each is to score what somebody said of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import scores, weights
from mmalign.objectives.parts import SCORES, live, live_mean, refuse_kind
from mmalign.types import Feedback, Loss, Method, Steps


def rated(*, target: Callable[[Feedback], Tensor], cost: Callable[[Tensor, Tensor], Tensor]) -> Method:
    """``value of a row = cost(score, target)``, in each dimension that is scored; rows without a target say nothing.

    target: Feedback -> ``[B, 1 or T]`` float64, NaN where nobody said anything. cost: elementwise, of scores and targets ``[B, T]``.

    **Layout.** The signal ``[B, 1 or T, 2]`` of a row holds 1 where its target is known (else 0 in both), and the target. Metrics are means
    over scores whose target is known.

    Errors: UserError of the loss for steps that are no scores.
    """
    score = scores.policy()

    def signal(feedback: Feedback) -> Tensor:
        targets = target(feedback)
        known = ~targets.isnan()
        return torch.stack([known.double(), targets.nan_to_num(0.0)], -1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, SCORES)
        own, known = score.of(steps), steps.mask & (signal[..., 0] != 0)
        targets = signal[..., 1].expand_as(own)
        with torch.no_grad():
            metrics = {"score": live_mean(own, known), "error": live_mean((own - targets).abs(), known)}
        return Loss(live(cost(own, targets), known), metrics, known.sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.sequence_mean,
        needs=score.needs,
        unit="row",
        kinds=SCORES,
        keep=lambda feedback: ~target(feedback).isnan().all(1),
    )
