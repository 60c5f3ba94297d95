"""Sentences: parts put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import penalties, ratios
from mmalign.objectives.parts import Part, bounded_exp, bounded_expm1, live, live_mean
from mmalign.objectives.surrogates import Surrogate
from mmalign.types import Feedback, Loss, Method, Steps, Unit, UserError

_WIDTH: dict[Unit, int] = {"cell": 0, "row": 1, "pair": 2, "group": 3, "batch": 4}


def policy_gradient(
    *,
    advantage: Callable[[Feedback], Tensor],
    log_ratio: Part,
    surrogate: Callable[[Tensor, Tensor], Surrogate],
    weigh: Callable[[Tensor], Tensor],
    penalty: Part | None = None,
    keep: Callable[[Feedback], Tensor] | None = None,
    kinds: frozenset[str] = frozenset({"token", "transition"}),
) -> Method:
    """``values = surrogate(log_ratio(steps), advantage) + penalty(steps)``.

    advantage: Feedback of the whole rollout -> ``[B]``, or ``[B, T]`` where steps differ; without gradient.
    log_ratio, penalty: parts; ``ratios.named`` and ``penalties.named`` give them by name.
    surrogate: ``(log_ratio [B, T], advantage [B, 1 or T]) -> Surrogate``.
    weigh, keep, kinds: as in ``types.Method``.

    The loss raises UserError for a kind of steps that it does not accept, and where a part misses what it needs. A row whose
    advantage is 0 has no policy gradient but still pays the penalty and still counts in the weights.

    Metrics are those of ``_metrics``.
    """
    parts = [part for part in (log_ratio, penalty) if part is not None]

    def signal(feedback: Feedback) -> Tensor:
        advantages = advantage(feedback).detach()
        return advantages[:, None] if advantages.ndim == 1 else advantages

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in kinds:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")
        if signal.shape not in ((len(steps), 1), steps.log_probs.shape):
            raise UserError(f"signal: got shape {list(signal.shape)}, takes [{len(steps)}, 1] or {list(steps.log_probs.shape)}")
        ratio = log_ratio.of(steps)
        values, clipped = surrogate(ratio, live(signal.expand_as(ratio), steps.mask))
        if penalty is not None:
            values = values + penalty.of(steps)
        return Loss(live(values, steps.mask), _metrics(steps, ratio, clipped))

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=frozenset().union(*(part.needs for part in parts)),
        unit=max((part.unit for part in parts), key=_WIDTH.__getitem__),
        kinds=kinds,
        keep=keep,
    )


@torch.no_grad()
def _metrics(steps: Steps, log_ratio: Tensor, clipped: Tensor) -> dict[str, Tensor]:
    """Means over the live cells of a micro-batch, as 0-d tensors.

    A recipe adds them up over micro-batches by weighting each with its number of live cells (``steps.mask.sum()``); that gives
    the mean over the whole batch for any split. Names that end in ``_max`` take the largest instead. Without a live cell all
    are 0, and weigh 0.

    ratio_mean, ratio_max: the ratio that is clipped, in its own dialect. clip_fraction: cells whose gradient the clip took.
    approx_kl: KL of the sampling policy to the current one, estimated by k3, nats. kl: KL to the reference ``ref``, nats,
    exact where the table holds it and by k3 otherwise; absent where there is no reference.
    """
    mask, drift = steps.mask, ratios.per_step(steps)
    ratio = live(bounded_exp(log_ratio), mask)
    metrics = {
        "ratio_mean": live_mean(ratio, mask),
        "ratio_max": ratio.max() if ratio.numel() else ratio.new_zeros(()),
        "clip_fraction": live_mean(clipped.double(), mask),
        "approx_kl": live_mean(bounded_expm1(drift) - drift, mask),
    }
    if "ref" in steps.kls:
        metrics["kl"] = live_mean(penalties.exact_kl(steps), mask)
    elif "ref" in steps.refs:
        metrics["kl"] = live_mean(penalties.k3(steps), mask)
    return metrics
