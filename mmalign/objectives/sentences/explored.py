"""Preferences with a push away from, or towards, what some rows say: exploration, and the value of the policy that a reward implies.

**Layout.** That of ``pairwise``, with two more channels: the signal ``[2N, 1, 3]`` holds the strength of the row's pair, what the pair
counts for, and what the row's own score counts for. Rows of which no preference is known may stand in pairs of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite
from mmalign.objectives.parts import DENSITIES, Part, live, refuse_kind
from mmalign.types import Feedback, Loss, Method, Steps, UserError


def explored(method: Method, *, score: Part, weight: Finite, rows: Callable[[Feedback], Tensor]) -> Method:
    """A method for pairs, and ``weight`` times the mean of ``score`` over some rows.

    ``loss = mean over pairs of the method's value + weight * mean over rows of score``: the two means have counts of their own, those of
    the whole rollout. score: ``Steps -> [B, 1]``, of whole rows. rows: Feedback -> ``[B]`` bool, rows with a score to add. Takes
    tokens and transitions.

    method: for pairs. weight: of the rows' mean, of any sign.

    Errors: UserError of the loss for a bound.
    """

    def signal(feedback: Feedback) -> Tensor:
        known, chosen = method.signal(feedback)[:, :1], rows(feedback)[:, None]
        counted = ((known != 0) | chosen).sum().double()
        pair = torch.where(known != 0, counted / (known != 0).sum().clamp(min=1), 0.0)
        own = torch.where(chosen, weight * counted / chosen.sum().clamp(min=1), 0.0)
        return torch.stack([known, pair, own], dim=-1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, DENSITIES)
        if signal.shape != (len(steps), 1, 3):
            raise UserError(f"signal: got shape {list(signal.shape)}, takes [{len(steps)}, 1, 3]")
        preferred, metrics, over, _ = method.loss(steps, signal[..., 0])
        own = live(score.of(steps).expand_as(steps.mask), steps.mask)
        bonus = signal[..., 2] * own
        return Loss(signal[..., 1] * preferred + bonus, {**metrics, "bonus": _mean_of_rows(bonus, steps.mask)}, over)

    return replace(
        method,
        signal=signal,
        loss=loss,
        kinds=DENSITIES,
        needs=method.needs | score.needs,
        keep=lambda feedback: (signal(feedback)[:, 0] != 0).any(1),
    )


@torch.no_grad()
def _mean_of_rows(cells: Tensor, mask: Tensor) -> Tensor:
    """Mean over live rows of what stands in all live cells of each, 0-d."""
    rows = cells.sum(1) / mask.sum(1).clamp(min=1)
    return rows.sum() / mask.any(1).sum().clamp(min=1)
