"""Sentences: parts put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.objectives import penalties, ratios
from mmalign.objectives.parts import Part, bounded_exp, bounded_expm1, live, live_mean
from mmalign.objectives.surrogates import Surrogate
from mmalign.types import Feedback, Loss, Method, Need, Steps, Unit, UserError

_WIDTH: dict[Unit, int] = {"cell": 0, "row": 1, "pair": 2, "group": 3, "batch": 4}


class Gate(NamedTuple):
    """What a cell's gradient is multiplied by: ``(Steps, signal [B, T, S]) -> [B, T]``; taken without gradient.

    needs, unit: as in ``types.Method``.
    """

    of: Callable[[Steps, Tensor], Tensor]
    needs: frozenset[Need] = frozenset()
    unit: Unit = "cell"


class Term(NamedTuple):
    """What is added to the values and looks into the signal: ``(Steps, signal [B, T, S]) -> [B, T]``, differentiable.

    name: of its mean in the metrics. needs, unit: as in ``types.Method``.
    """

    name: str
    of: Callable[[Steps, Tensor], Tensor]
    needs: frozenset[Need] = frozenset()
    unit: Unit = "cell"


def policy_gradient(  # the parts of a sentence
    *,
    advantage: Callable[[Feedback], Tensor],
    log_ratio: Part,
    surrogate: Callable[[Tensor, Tensor], Surrogate],
    weigh: Callable[[Tensor], Tensor],
    penalty: Part | None = None,
    limit: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    gate: Gate | None = None,
    terms: Sequence[Term] = (),
    keep: Callable[[Feedback], Tensor] | None = None,
    kinds: frozenset[str] = frozenset({"token", "transition"}),
    reads: frozenset[Need] = frozenset(),
    state: object = None,
    survey: Callable[[Steps, Tensor], Tensor] | None = None,
) -> Method:
    """``values = gate(steps, signal) * surrogate(log_ratio(steps), A) + penalty(steps) + terms(steps, signal)``, A the advantage.

    advantage: Feedback of the whole rollout -> ``[B]``, or ``[B, T]`` where steps differ, or ``[B, 1 or T, S]``, the advantage first,
        where terms need more; without gradient.
    log_ratio, penalty: parts; ``ratios.named`` and ``penalties.named`` give them by name. ``ratios.LIKELIHOOD`` is no ratio.
    surrogate: ``(log_ratio [B, T], advantage [B, 1 or T]) -> Surrogate``.
    limit: ``(log_ratio, advantage, mask) -> log_ratio``, each ``[B, T]``: what is done to a ratio that depends on the advantage.
    gate, terms: see there. weigh, keep, kinds, reads, state, survey: as in ``types.Method``.

    The loss raises UserError for a kind of steps that it does not accept, and where a part misses what it needs. A row whose
    advantage is 0 has no policy gradient but still pays the penalty and still counts in the weights.

    Metrics are those of ``_metrics``, and the mean of each term.
    """
    parts: list[Part | Gate | Term] = [part for part in (log_ratio, penalty, gate, *terms) if part is not None]

    def signal(feedback: Feedback) -> Tensor:
        advantages = advantage(feedback).detach()
        return advantages[:, None] if advantages.ndim == 1 else advantages

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in kinds:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")
        shape = tuple(steps.log_probs.shape)
        if signal.shape[:2] not in ((len(steps), 1), shape) or signal.ndim not in (2, 3):
            raise UserError(f"signal: got shape {list(signal.shape)}, takes [{len(steps)}, 1] or {list(shape)}, and channels")
        channels = signal[..., None] if signal.ndim == 2 else signal
        channels = torch.where(steps.mask[..., None], channels.expand(*shape, -1), torch.zeros_like(channels[:, :1]))
        advantages, ratio = channels[..., 0], log_ratio.of(steps)
        values, clipped = surrogate(ratio if limit is None else limit(ratio, advantages, steps.mask), advantages)
        if gate is not None:
            with torch.no_grad():
                passed = live(gate.of(steps, channels), steps.mask)
            values, clipped = passed * values, clipped | (passed == 0)
        if penalty is not None:
            values = values + penalty.of(steps)
        metrics = _metrics(steps, ratio if log_ratio.needs else None, clipped)
        for term in terms:
            added = live(term.of(steps, channels), steps.mask)
            values, metrics[term.name] = values + added, live_mean(added.detach(), steps.mask)
        return Loss(live(values, steps.mask), metrics)

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=frozenset().union(*(part.needs for part in parts)),
        unit=max((part.unit for part in parts), key=_WIDTH.__getitem__),
        kinds=kinds,
        keep=keep,
        reads=reads,
        state=state,
        survey=survey,
    )


@torch.no_grad()
def _metrics(steps: Steps, log_ratio: Tensor | None, clipped: Tensor) -> dict[str, Tensor]:
    """Means over the live cells of a micro-batch, as 0-d tensors.

    A recipe adds them up over micro-batches by weighting each with its number of live cells (``steps.mask.sum()``); that gives
    the mean over the whole batch for any split. Names that end in ``_max`` take the largest instead. Without a live cell all
    are 0, and weigh 0.

    ratio_mean, ratio_max: the ratio that is clipped, in its own dialect; absent where there is none. clip_fraction: cells whose
    gradient the clip, or a gate, took. approx_kl: KL of the sampling policy to the current one, estimated by k3, nats; absent where
    nothing was sampled. kl: KL to the reference ``ref``, nats, exact where the table holds it and by k3 otherwise; absent where there
    is no reference.
    """
    mask = steps.mask
    metrics = {"clip_fraction": live_mean(clipped.double(), mask)}
    if log_ratio is not None:
        ratio = live(bounded_exp(log_ratio), mask)
        metrics["ratio_mean"] = live_mean(ratio, mask)
        metrics["ratio_max"] = ratio.max() if ratio.numel() else ratio.new_zeros(())
    if steps.old is not None:
        drift = ratios.per_step(steps)
        metrics["approx_kl"] = live_mean(bounded_expm1(drift) - drift, mask)
    if "ref" in steps.kls:
        metrics["kl"] = live_mean(penalties.exact_kl(steps), mask)
    elif "ref" in steps.refs:
        metrics["kl"] = live_mean(penalties.k3(steps), mask)
    return metrics
