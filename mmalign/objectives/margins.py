"""How much more a policy has come to like one row of a pair than the other: ``Steps [2N, T] -> [N, 1 or T]``, differentiable.

Rows ``2k`` and ``2k + 1`` of a table are a pair. A margin is the log-ratio to the reference ``ref`` of the first row minus that
of the second. ``[N, 1]``: the pair as a whole; ``[N, T]``: every step is a comparison of its own (noise draws of a bound).
A pair with an empty row, or a step that only one row has, has margin 0; ``paired`` says which those are.
"""

from __future__ import annotations

from torch import Tensor

from mmalign.objectives.parts import Part, choose, live
from mmalign.types import Steps, UserError


def paired(steps: Steps) -> Tensor:
    """``[N, T]`` bool: the steps that both rows of a pair have."""
    return steps.mask[0::2] & steps.mask[1::2]


def log_ratio(steps: Steps) -> Tensor:
    """``log pi - log ref`` of each step, ``[2N, T]`` nats, 0 in dead cells."""
    if "ref" not in steps.refs:
        raise UserError(f"Steps.refs: got {sorted(steps.refs)}, a margin takes 'ref'")
    return live(steps.log_probs - steps.refs["ref"].detach(), steps.mask)


def _difference(rows: Tensor, steps: Steps) -> Tensor:
    """``rows [2N, 1]`` of a pair's first row minus its second, ``[N, 1]``; 0 for a pair with an empty row."""
    whole = steps.mask.any(1, keepdim=True)
    return live(rows[0::2] - rows[1::2], whole[0::2] & whole[1::2])


def total(steps: Steps) -> Tensor:
    """Log-ratios summed over a row's steps, ``[N, 1]`` nats: DPO's margin (arXiv 2305.18290, eq. 7)."""
    return _difference(log_ratio(steps).sum(1, keepdim=True), steps)


def per_step(steps: Steps) -> Tensor:
    """Log-ratios averaged over a row's live steps, ``[N, 1]`` nats per step: length-normalised DPO."""
    length = steps.mask.sum(1, keepdim=True).clamp(min=1)
    return _difference(log_ratio(steps).sum(1, keepdim=True) / length, steps)


def per_scalar(steps: Steps) -> Tensor:
    """``total`` divided by the scalars of one event, ``[N, 1]``: a mean over the latent."""
    return total(steps) / steps.event_size


def apart(steps: Steps) -> Tensor:
    """Each step by itself, ``[N, T]`` nats: every noise draw of a bound is compared with its twin."""
    ratio = log_ratio(steps)
    return live(ratio[0::2] - ratio[1::2], paired(steps))


def apart_per_scalar(steps: Steps) -> Tensor:
    """``apart`` divided by the scalars of one event, ``[N, T]``: minus half of a difference of mean squared errors."""
    return apart(steps) / steps.event_size


def errors(*, error: str, half: bool) -> Part:
    """Minus the difference of squared denoising errors to the reference's, ``[N, T]``, for tables of kind ``bound``.

    ``-h [(l_1 - l_1^ref) - (l_2 - l_2^ref)]`` with l the squared error of a row, its ``mean`` or its ``sum`` over the latent
    (``error``), and h = 1/2 (``half``), which is what a bound holds, or 1. Raises UserError for another ``error``.
    """
    if error not in ("mean", "sum"):
        raise UserError(f"error: got {error!r}, takes 'mean' or 'sum'")
    part = named("apart_per_scalar" if error == "mean" else "apart")
    return part if half else part._replace(of=lambda steps: 2 * part.of(steps))


def by_noise(margin: Part) -> Part:
    """A margin times ``(1 - s)^2`` at noise level s, which turns errors of a velocity into errors of the noise.

    ``eps_hat = x + (1 - s) v_hat``, so ``|eps - eps_hat|^2 = (1 - s)^2 |v - v_hat|^2``. Needs ``facts["noise"]``, and a pair
    whose rows share their noise levels.
    """

    def of(steps: Steps) -> Tensor:
        if "noise" not in steps.facts:
            raise UserError(f"Steps.facts: got {sorted(steps.facts)}, this margin takes noise")
        level = live(steps.facts["noise"].detach(), steps.mask)[0::2]
        return margin.of(steps) * (1 - level) ** 2

    return Part(of, margin.needs | {"noise"}, "pair")


_REF = frozenset({"refs:ref"})
_NAMED = {
    "total": Part(total, _REF, "pair"),
    "per_step": Part(per_step, _REF, "pair"),
    "per_scalar": Part(per_scalar, _REF, "pair"),
    "apart": Part(apart, _REF, "pair"),
    "apart_per_scalar": Part(apart_per_scalar, _REF, "pair"),
}


def named(name: str) -> Part:
    """The margin of that name, with what it needs. Raises UserError for an unknown name."""
    return choose("margin", name, _NAMED)
