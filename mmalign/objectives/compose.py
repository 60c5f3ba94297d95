"""Sentences: parts put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import links, margins, penalties, ratios
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


def preference(
    *,
    margin: Part,
    link: links.Link,
    weigh: Callable[[Tensor], Tensor],
    smoothing: float = 0.0,
    kinds: frozenset[str] = frozenset({"token", "transition"}),
) -> Method:
    """``value of a pair = p link(margin) + (1 - p) link(-margin)``, p the probability that its better row is the better one.

    margin: a part, ``[2N, T] -> [N, 1 or T]``; ``margins.named`` gives them by name. link: ``margin -> value``.
    smoothing: part of the labels taken to be flipped. weigh, kinds: as in ``types.Method``.

    **Layout.** Rows ``2k`` and ``2k + 1`` of the Steps are a pair, and the signal ``[2N, 1]`` says what is known of it: plus p
    for the better row, minus p for the other, with p in 0.5..1; both 0 where nothing is known. So a tie is +-0.5, and a signal
    that is not of this form, because a pair was torn apart, is refused. ``signal`` fills it from ``Feedback.pairs`` (each row in
    at most one) and ``Feedback.strength`` (1 where there is none, NaN where it is missing); a recipe brings the rows into order.

    The pair's value stands in all live cells of both rows (``[N, T]`` margins: in the cells of their step), so that
    ``weights.sequence_mean`` makes the mean over pairs. A pair with an empty row has value 0.
    """
    if not 0 <= smoothing < 0.5:
        raise UserError(f"smoothing: got {smoothing}, takes 0 to below 0.5")

    def loss(steps: Steps, signal: Tensor) -> Loss:
        if steps.kind not in kinds:
            raise UserError(f"Steps.kind: got {steps.kind!r}, this method takes {' or '.join(sorted(kinds))}")
        strength, sign = _pairs(steps, signal)
        first = margin.of(steps)
        ahead = sign * first  # of the better row
        values = links.soft(link, ahead, links.smoothed(strength, flips=smoothing)) * (sign != 0)
        both = margins.paired(steps) if first.shape[1] > 1 else _whole(steps).expand(-1, steps.mask.shape[1])
        cells = live(values.expand_as(both), both).repeat_interleave(2, 0)
        return Loss(live(cells, steps.mask), _pair_metrics(steps, ahead, sign), steps.mask.any(1).sum())

    return Method(signal=_strengths, loss=loss, weigh=weigh, needs=margin.needs, unit="pair", kinds=kinds, keep=_known_pairs)


def _strengths(feedback: Feedback) -> Tensor:
    """The signal ``[B, 1]`` of ``preference``."""
    if feedback.pairs is None:
        raise UserError("Feedback.pairs: got None, a preference takes pairs of row numbers")
    rows = feedback.pairs.flatten()
    if len(rows.unique()) < len(rows):
        raise UserError("Feedback.pairs: got a row in more than one pair, takes each at most once")
    given = torch.ones(len(feedback.pairs)) if feedback.strength is None else feedback.strength
    strength = given.detach().double()
    if bool(((strength < 0) | (strength > 1)).any()):
        raise UserError("Feedback.strength: got values outside 0..1")
    first = torch.where(strength >= 0.5, strength, strength - 1).nan_to_num(0.0)
    signal = torch.zeros(len(feedback.rewards), 1, dtype=torch.float64)
    signal[feedback.pairs[:, 0], 0], signal[feedback.pairs[:, 1], 0] = first, -first
    return signal


def _known_pairs(feedback: Feedback) -> Tensor:
    return _strengths(feedback)[:, 0] != 0


def _pairs(steps: Steps, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Strength of the better row and sign of the first, ``[N, 1]`` each, after a look at the layout."""
    if signal.shape != (len(steps), 1) or len(steps) % 2:
        raise UserError(f"signal: got shape {list(signal.shape)} for {len(steps)} rows, takes [{len(steps)}, 1] and whole pairs")
    if not torch.equal(signal[0::2], -signal[1::2]):
        raise UserError("signal: rows 2k and 2k + 1 are no pair; takes the two rows of each pair side by side")
    return signal[0::2].abs(), signal[0::2].sign()


def _whole(steps: Steps) -> Tensor:
    """``[N, 1]`` bool: pairs of which both rows have a live step."""
    rows = steps.mask.any(1, keepdim=True)
    return rows[0::2] & rows[1::2]


@torch.no_grad()
def _pair_metrics(steps: Steps, ahead: Tensor, sign: Tensor) -> dict[str, Tensor]:
    """Means over live rows, as 0-d tensors; over micro-batches they add up by the number of live rows.

    margin: by how much the better row is ahead, in the units of the margin. accuracy: pairs in which it is ahead; a margin of 0
    and a pair that says nothing count one half. better, worse: log-ratio to ``ref`` of the better and the worse rows, nats,
    summed over steps: the margin can grow while both fall. All are 0 without a live row.
    """
    whole = _whole(steps)
    rows = steps.mask.any(1).sum().clamp(min=1)
    both = margins.paired(steps) if ahead.shape[1] > 1 else whole
    count = both.sum(1, keepdim=True).clamp(min=1)
    ratio = margins.log_ratio(steps).sum(1, keepdim=True)
    up, down = torch.where(sign >= 0, ratio[0::2], ratio[1::2]), torch.where(sign >= 0, ratio[1::2], ratio[0::2])
    right = live((ahead.sign() + 1) / 2, both).sum(1, keepdim=True) / count

    def mean(values: Tensor) -> Tensor:
        return 2 * live(values, whole).sum() / rows

    margin = mean(live(ahead, both).sum(1, keepdim=True) / count)
    return {"margin": margin, "accuracy": mean(right), "better": mean(up), "worse": mean(down)}


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
