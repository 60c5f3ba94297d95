"""Policy gradients: an advantage, a ratio, a surrogate and what stands beside them, put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mmalign.objectives import penalties, ratios
from mmalign.objectives.parts import DENSITIES, Part, Reading, Term, bounded_exp, bounded_expm1, live, live_mean, refuse_kind
from mmalign.objectives.sentences.layout import Layout, side_by_side
from mmalign.objectives.surrogates import Surrogate
from mmalign.objectives.terms.gates import Gate, Signal
from mmalign.types import Feedback, Loss, Method, Steps, UserError


def policy_gradient(  # the parts of a sentence
    *,
    advantage: Callable[[Feedback], Tensor] | Reading,
    log_ratio: Part,
    surrogate: Callable[[Tensor, Tensor], Surrogate],
    weigh: Callable[[Tensor], Tensor],
    penalty: Part | None = None,
    limit: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    gate: Gate | None = None,
    critic: Term[Signal] | None = None,
    terms: Mapping[str, Term[Signal]] | None = None,
    keep: Callable[[Feedback], Tensor] | None = None,
    kinds: frozenset[str] = DENSITIES,
) -> Method:
    """``values = gate(steps, signal) * surrogate(log_ratio(steps), A) + penalty(steps) + terms(steps, signal)``, A the advantage.

    advantage: Feedback of the whole rollout -> ``[B]``, or ``[B, T]`` where steps differ, without gradient; a ``Reading``, where it reads
        tables, keeps a state, or has ``width`` numbers ``[B, 1 or T, width]``, the advantage first, and then what a critic is fitted to.
    log_ratio, penalty: parts; ``ratios.named`` and ``penalties.named`` give them by name. ``ratios.LIKELIHOOD`` is no ratio.
    surrogate: ``(log_ratio [B, T], advantage [B, 1 or T]) -> Surrogate``.
    limit: ``(log_ratio, advantage, mask) -> log_ratio``, each ``[B, T]``: what is done to a ratio that depends on the advantage.
    gate: what a cell's gradient is multiplied by. critic: a term that is told the advantage's further numbers. terms: name -> what is
        added. The means of terms are metrics of their names, the critic's is ``value_loss``.
    weigh, keep: as in ``types.Method``. kinds: of steps, as far as all terms take them.

    Errors: UserError of the loss for a kind of steps that it does not accept, and where a part misses what it needs. A row whose
    advantage is 0 has no policy gradient but still pays the penalty and still counts in the weights.

    Metrics are those of ``_metrics``, and the mean of each term.
    """
    reading = advantage if isinstance(advantage, Reading) else Reading(advantage)
    terms = dict(terms or {})
    layout = Layout([*([] if gate is None else [gate]), *terms.values()])
    kinds = layout.kinds(kinds)

    def signal(feedback: Feedback) -> Tensor:
        first = reading.of(feedback).detach()
        first = first[:, None] if first.ndim == 1 else first
        extras = layout.extras(feedback)
        if not extras:
            return first
        return side_by_side([first if first.ndim == 3 else first[..., None], *extras])

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        numbers = _numbers(steps, signal)
        known = lambda extras, surveyed: Signal(numbers[..., 0], extras, surveyed)  # noqa: E731
        return torch.cat([numbers, *layout.survey(known, steps, numbers[..., reading.width :])], -1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        numbers = _numbers(steps, signal)
        advantages, ratio = numbers[..., 0], log_ratio.of(steps)
        own = [Signal(advantages, extras, surveyed) for extras, surveyed in layout.split(numbers[..., reading.width :])]
        values, clipped = surrogate(ratio if limit is None else limit(ratio, advantages, steps.mask), advantages)
        if gate is not None:
            with torch.no_grad():
                passed = live(gate.of(steps, own.pop(0)), steps.mask)
            values, clipped = passed * values, clipped | (passed == 0)
        if penalty is not None:
            values = values + penalty.of(steps)
        added = {name: term.of(steps, seen) for (name, term), seen in zip(terms.items(), own, strict=True)}
        if critic is not None:
            fitted = critic.of(steps, Signal(advantages, numbers[..., 1 : reading.width], numbers[..., :0]))
            added = {"value_loss": fitted, **added}
        metrics = _metrics(steps, ratio if log_ratio.needs else None, clipped)
        for name, more in added.items():
            more = live(more, steps.mask)
            values, metrics[name] = values + more, live_mean(more.detach(), steps.mask)
        return Loss(live(values, steps.mask), metrics)

    return Method(
        signal=signal,
        loss=loss,
        weigh=weigh,
        needs=layout.needs(log_ratio, penalty, critic),
        unit=layout.unit(log_ratio, penalty, critic),
        kinds=kinds,
        keep=keep,
        reads=layout.reads(reading),
        survey=survey if layout.surveys else None,
        survey_needs=layout.survey_needs(),
        state=layout.state(reading),
    )


def _numbers(steps: Steps, signal: Tensor) -> Tensor:
    """The signal's numbers ``[B, T, W]``, 0 in dead cells."""
    shape = tuple(steps.log_probs.shape)
    if signal.shape[:2] not in ((len(steps), 1), shape) or signal.ndim not in (2, 3):
        raise UserError(f"signal: got shape {list(signal.shape)}, takes [{len(steps)}, 1] or {list(shape)}, and channels")
    numbers = signal[..., None] if signal.ndim == 2 else signal
    return torch.where(steps.mask[..., None], numbers.expand(*shape, -1), torch.zeros_like(numbers[:, :1]))


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
