"""Methods for single rows: each is good or bad, and is compared with a number that all rows share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.needs import contrast
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import ANY, Part, Survey, live, refuse_kind, under
from mmalign.objectives.terms.baselines import LOG_RATIO
from mmalign.types import Feedback, Loss, Method, Steps


def rowwise(
    *,
    good: Callable[[Tensor, Tensor], Tensor],
    bad: Callable[[Tensor, Tensor], Tensor],
    weigh: Callable[[Tensor], Tensor],
    baseline: Survey,
    score: Part = LOG_RATIO,
    against: str | None = None,
    kinds: frozenset[str] = ANY,
) -> Method:
    """``value of a row = p good(ratio, z) + (1 - p) bad(ratio, z)``, p the probability that the row is good.

    good, bad: ``(log-ratio to ref [B, 1 or T], baseline [B, 1]) -> value``. baseline: what all rows of an update are compared with,
    ``(steps of all rows, verdicts [B, 1]) -> 0-d``, found once for each update; ``terms.baselines`` has some. weigh: as in
    ``types.Method``. score: what takes the place of the log-ratio. against: a contrast under which every good row is a bad one, and adds
    ``p bad(ratio under it, z)``; rows that are bad by themselves then say nothing. kinds: of steps.

    **Layout.** The signal ``[B, 1, 2]`` holds the verdict, plus p for a good row and minus 1 - p for a bad one (|.| in 0.5..1; 0:
    nothing is known), and the baseline. Labels are those of ``comparisons.labels``: given, or from pairs, or from rewards.

    Errors: UserError of the loss where the table misses what is needed.
    """

    def labels(feedback: Feedback) -> Tensor:
        p = comparisons.labels(feedback)
        return p if against is None else torch.where(p > 0.5, p, torch.nan)

    def signal(feedback: Feedback) -> Tensor:
        p = labels(feedback)
        verdict = torch.where(p >= 0.5, p, p - 1).nan_to_num(0.0)
        return torch.stack([verdict, torch.zeros_like(verdict)], dim=-1)[:, None]

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        z = baseline.of(steps, signal[:, :, 0]).detach().double().to(signal)
        return torch.stack([signal[..., 0], z.expand_as(signal[..., 0])], dim=-1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        verdict, z = signal[..., 0], signal[..., 1]
        sure, ratio = verdict.abs(), score.of(steps)
        if_good, if_bad = good(ratio, z), bad(ratio if against is None else score.of(under(steps, against)), z)
        if against is None:
            values = torch.where(verdict > 0, sure * if_good + (1 - sure) * if_bad, sure * if_bad + (1 - sure) * if_good)
        else:
            values = sure * (if_good + if_bad)
        values = live((values * (verdict != 0)).expand_as(steps.mask), steps.mask)
        return Loss(values, _metrics(steps, ratio, verdict, z), steps.mask.any(1).sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=score.needs | (frozenset() if against is None else {contrast(against)}),
        unit="row",
        kinds=kinds,
        keep=lambda feedback: ~labels(feedback).isnan(),
        state=baseline.state,
        survey=survey,
        survey_needs=baseline.needs,
    )


@torch.no_grad()
def _metrics(steps: Steps, ratio: Tensor, verdict: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Means over live rows: ``better``, ``worse``, the ratio of good and of bad rows times their share; ``baseline``; ``accuracy``.

    accuracy: rows on the right side of the baseline; one half for a row that says nothing.
    """
    rows = steps.mask.any(1, keepdim=True)
    count = rows.sum().clamp(min=1)
    if ratio.shape[1] > 1:
        per_row = live(ratio, steps.mask).sum(1, keepdim=True) / steps.mask.sum(1, keepdim=True).clamp(min=1)
    else:
        per_row = live(ratio, rows)
    right = ((per_row - z).sign() * verdict.sign() + 1) / 2

    def mean(values: Tensor) -> Tensor:
        return live(values, rows).sum() / count

    return {"better": mean(per_row * (verdict > 0)), "worse": mean(per_row * (verdict < 0)), "baseline": mean(z), "accuracy": mean(right)}
