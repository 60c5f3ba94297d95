"""Sentences about single rows: each is good or bad, and is compared with a number that all rows share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.needs import refs
from mmalign.objectives import scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import live
from mmalign.types import Feedback, Loss, Method, Need, Steps, UserError

ANY = frozenset({"token", "transition", "bound"})


row_ratio = scores.ratio("total").of
"""``log pi - log ref`` of each row, ``[B, 1]`` nats; of a bound, of each cell ``[B, T]``: every noise draw is a row of its own."""


def baselines(name: str) -> Callable[[Steps, Tensor], Tensor]:
    """What rows are compared with, by name: ``mismatched``, ``batch`` (both ``max(0, mean log-ratio)``) or ``zero``; 0-d.

    Rows of which nothing is known (verdict 0) do not count. Errors: UserError for another name, or a table without the contrast.
    """
    if name not in ("mismatched", "batch", "zero"):
        raise UserError(f"baseline: got {name!r}, takes 'mismatched', 'batch' or 'zero'")

    def mean(steps: Steps, verdict: Tensor) -> Tensor:
        if name == "zero":
            return torch.zeros((), dtype=torch.float64)
        if name == "mismatched":
            if "mismatched" not in steps.contrasts:
                raise UserError(f"Steps.contrasts: got {sorted(steps.contrasts)}, this baseline takes 'mismatched'")
            steps = steps.contrasts["mismatched"]
        known = steps.each(lambda table: table & (verdict != 0) if table.dtype == torch.bool else table)
        return of_rows(row_ratio(known), known).clamp(min=0)

    return mean


def of_rows(values: Tensor, steps: Steps) -> Tensor:
    """Mean of ``values [B, 1 or T]`` over rows with a live cell, or over live cells, as a 0-d tensor; 0 without any."""
    counts = steps.mask if values.shape[1] > 1 else steps.mask.any(1, keepdim=True)
    return live(values, counts).sum() / counts.sum().clamp(min=1)


def thumbs(
    *,
    good: Callable[[Tensor, Tensor], Tensor],
    bad: Callable[[Tensor, Tensor], Tensor],
    weigh: Callable[[Tensor], Tensor],
    baseline: Callable[[Steps, Tensor], Tensor],
    needs: frozenset[Need] = frozenset({refs("ref")}),
    survey_needs: frozenset[Need] = frozenset(),
    state: object = None,
) -> Method:
    """``value of a row = p good(ratio, z) + (1 - p) bad(ratio, z)``, p the probability that the row is good.

    good, bad: ``(row_ratio [B, 1 or T], baseline [B, 1]) -> value``. baseline: what all rows of an update are compared with,
    ``(steps of all rows, verdicts [B, 1]) -> 0-d``, found once for each update (``Method.survey``), without gradient.
    weigh, needs, survey_needs, state: as in ``types.Method``.

    **Layout.** The signal ``[B, 1, 2]`` holds the verdict, plus p for a good row and minus 1 - p for a bad one (|.| in 0.5..1; 0:
    nothing is known), and the baseline. Labels are those of ``comparisons.labels``: given, or from pairs, or from rewards.
    """

    def signal(feedback: Feedback) -> Tensor:
        p = comparisons.labels(feedback)
        verdict = torch.where(p >= 0.5, p, p - 1).nan_to_num(0.0)
        return torch.stack([verdict, torch.zeros_like(verdict)], dim=-1)[:, None]

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        z = baseline(steps, signal[:, :, 0]).detach().double().to(signal)
        return torch.stack([signal[..., 0], z.expand_as(signal[..., 0])], dim=-1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in ANY:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(ANY))}")
        verdict, z = signal[..., 0], signal[..., 1]
        sure, ratio = verdict.abs(), row_ratio(steps)
        first, other = good(ratio, z), bad(ratio, z)
        values = torch.where(verdict > 0, sure * first + (1 - sure) * other, sure * other + (1 - sure) * first)
        values = live((values * (verdict != 0)).expand_as(steps.mask), steps.mask)
        return Loss(values, _metrics(steps, ratio, verdict, z), steps.mask.any(1).sum())

    return Method(
        signal=signal, loss=loss, weigh=weigh, needs=needs, unit="row", kinds=ANY, state=state, survey=survey, survey_needs=survey_needs,
        keep=lambda feedback: ~comparisons.labels(feedback).isnan(),
    )  # fmt: skip


@torch.no_grad()
def _metrics(steps: Steps, ratio: Tensor, verdict: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Means over live rows: ``better``, ``worse``, the ratio of good and of bad rows times their share; ``baseline``; ``accuracy``.

    accuracy: rows on the right side of the baseline; one half for a row that says nothing.
    """
    rows = steps.mask.any(1, keepdim=True)
    count = rows.sum().clamp(min=1)
    per_row = live(ratio, steps.mask if ratio.shape[1] > 1 else rows).sum(1, keepdim=True) / (
        steps.mask.sum(1, keepdim=True).clamp(min=1) if ratio.shape[1] > 1 else 1
    )
    right = ((per_row - z).sign() * verdict.sign() + 1) / 2

    def mean(values: Tensor) -> Tensor:
        return live(values, rows).sum() / count

    return {"better": mean(per_row * (verdict > 0)), "worse": mean(per_row * (verdict < 0)), "baseline": mean(z), "accuracy": mean(right)}
