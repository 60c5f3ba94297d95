"""What a cell's policy gradient is multiplied by: importance weights that are limited, faded or cut; all without gradient.

A gate is a term, ``(Steps, Signal) -> [B, T]``, that the sentence takes without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.needs import DRIFT, DT, OLD
from mmalign.objectives import ratios
from mmalign.objectives.parts import CAP, DENSITIES, Part, Reading, Survey, Term, bounded_exp, held, live
from mmalign.types import Steps, UserError


class Signal(NamedTuple):
    """What a signal says of each cell, as one term sees it; 0 in dead cells.

    advantage: ``[B, T]``. extras, surveyed: ``[B, T, E]`` and ``[B, T, S]``, what this term was told, and what its survey found.
    """

    advantage: Tensor
    extras: Tensor
    surveyed: Tensor


Gate = Term[Signal]


def within(low: float, high: float, *, ratio: str = "per_step") -> Gate:
    """``clip(rho, low, high)``, both absolute: a weight that is limited, so that no step loses its gradient (CISPO).

    ratio: one of ``objectives.ratios``. low, high: bounds of its exponential.
    """
    if not 0 <= low <= 1 <= high and not 0 <= low < high:
        raise UserError(f"smallest, largest: got {low} and {high}, takes 0 <= smallest < largest")
    part = ratios.named(ratio)
    return Gate(lambda steps, signal: bounded_exp(part.of(steps)).clamp(low, high), part.needs, part.unit)


def gamma(*, k: tuple[float, float], scale: tuple[float, float]) -> Gate:
    """``phi(w) = e^s w^k e^(-s w)``, w the whole row's ratio, k and s (``scale``) for ``A >= 0`` and for ``A < 0``; ``phi(1) = 1``.

    A gamma density's shape: it fades for rows that the policy has left behind, and for those it has run towards (VESPO).

    k, scale: (where the advantage is 0 or more, where it is below), above 0.
    """
    if min(*k, *scale) <= 0:
        raise UserError(f"k, scale: got {k} and {scale}, takes numbers above 0")

    def of(steps: Steps, signal: Signal) -> Tensor:
        advantage = signal.advantage
        log_w = ratios.whole_sequence(steps).clamp(max=CAP)
        power = torch.where(advantage >= 0, log_w.new_tensor(k[0]), log_w.new_tensor(k[1]))
        rate = torch.where(advantage >= 0, log_w.new_tensor(scale[0]), log_w.new_tensor(scale[1]))
        return (rate + power * log_w - rate * log_w.exp()).exp()

    return Gate(of, frozenset({OLD}), "row")


def divergence(kind: Literal["tv", "kl"], *, low: float, high: float, largest: float | None = None) -> Gate:
    """0 where a token's probability has moved too far the way its advantage pulls, 1 elsewhere (DPPO, arXiv 2602.04879, eq. 12-14).

    ``A > 0``: cut where ``pi > pi_old`` and their distance is above ``high``; ``A < 0``: where ``pi < pi_old`` and it is above
    ``low``. Of the two-way choice, this token or another: ``tv``, ``|pi - pi_old|``; ``kl``, the KL of the old choice to the new one.
    largest: ``largest / rho`` in place of 1 where rho is above it, so that the gradient weighs as ``largest`` would (eq. 23).

    kind: ``tv`` or ``kl``. low, high: bounds of the distance where the advantage is below and above 0.
    """
    if kind not in ("tv", "kl"):
        raise UserError(f"divergence: got {kind!r}, takes 'tv' or 'kl'")
    if min(low, high) < 0:
        raise UserError(f"low, high: got {low} and {high}, takes 0 or more")
    if largest is not None and largest < 1:
        raise UserError(f"largest: got {largest}, takes 1 or more, or None")

    def of(steps: Steps, signal: Signal) -> Tensor:
        advantage, moved = signal.advantage, ratios.per_step(steps)
        assert steps.old is not None  # per_step has looked
        log_now, log_old = live(steps.log_probs, steps.mask), live(steps.old, steps.mask)
        now, old = log_now.exp(), log_old.exp()
        apart = (now - old).abs()
        if kind == "kl":
            rest_now, rest_old = (-torch.expm1(log_now.clamp(max=-1e-12))), (-torch.expm1(log_old.clamp(max=-1e-12)))
            apart = old * -moved + rest_old * (rest_old.log() - rest_now.log())
        cut = ((advantage > 0) & (moved > 0) & (apart > high)) | ((advantage < 0) & (moved < 0) & (apart > low))
        passed = (~cut).to(log_now)
        return passed if largest is None else passed * (largest / bounded_exp(moved)).clamp(max=1.0)

    return Gate(of, frozenset({OLD}))


def drift(*, largest: float) -> Gate:
    """0 where a step's distribution has moved at least ``largest`` from the one it was sampled from, the way its advantage pulls; else 1.

    The distance is the exact KL over D, nats per scalar, and not the ratio of the one sample (Flow-DPPO, arXiv 2606.11025): a step that is
    on its way back keeps its gradient at any distance.

    largest: nats per scalar, 0 or more.
    """
    if largest < 0:
        raise UserError(f"largest: got {largest}, takes 0 or more nats per scalar")

    def of(steps: Steps, signal: Signal) -> Tensor:
        moved, apart = ratios.per_step(steps), live(held(steps, DRIFT), steps.mask) / steps.event_size
        outwards = ((signal.advantage > 0) & (moved > 0)) | ((signal.advantage < 0) & (moved < 0))
        return (~(outwards & (apart >= largest))).to(moved)

    return Gate(of, frozenset({OLD, DRIFT}))


def reweighed(by: Literal["length", "none"]) -> Gate | None:
    """``1 / |dt|`` of each denoising step, so that a long step weighs what a short one does (GRPO-Guard); None for ``none``.

    by: ``length`` or ``none``.
    """
    if by not in ("length", "none"):
        raise UserError(f"reweigh: got {by!r}, takes 'length' or 'none'")

    def of(steps: Steps, signal: Signal) -> Tensor:
        length = torch.where(steps.mask, held(steps, DT).abs(), 1.0)
        return live(1 / length, steps.mask)

    return None if by == "none" else Gate(of, frozenset({DT}))


def paid(penalty: Part, share: Reading) -> Term[Signal]:
    """A penalty of which each row pays its share: a term that is added, with its gradient.

    penalty: of a step. share: Feedback -> ``[B, 1, 1]``.
    """
    of = lambda steps, signal: penalty.of(steps) * signal.extras[..., 0]  # noqa: E731
    return Term(of, penalty.needs, penalty.unit, DENSITIES, extras=share)


def covariance(steps: Steps, advantage: Tensor) -> Tensor:
    """``(A - mean A)(log pi - mean log pi)`` of each live cell of an update, ``[B, T]``: what a step adds to the fall of entropy.

    arXiv 2505.22617, sec. 4. Means over live cells; 0 in dead cells.
    """
    count = steps.mask.sum().clamp(min=1)
    log_probs, advantage = live(steps.log_probs.detach(), steps.mask), live(advantage.expand_as(steps.mask), steps.mask)
    return live((advantage - advantage.sum() / count) * (log_probs - log_probs.sum() / count), steps.mask)


def largest(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """``[B, T]`` bool: the ``count`` largest values among the candidates; all of them where they are fewer.

    values: ``[B, T]``. candidates: ``[B, T]`` bool. count: how many.
    """
    chosen = torch.zeros_like(candidates)
    places = torch.nonzero(candidates.flatten())[:, 0]
    order = values.flatten()[places].argsort(descending=True, stable=True)
    chosen.view(-1)[places[order[:count]]] = True
    return chosen


def surveyed(of: Callable[[Steps, Tensor], Tensor]) -> Survey:
    """A survey that finds one number of each cell, ``of(steps, advantage [B, T]) -> [B, T]``.

    of: called once, on all rows of an update.
    """
    return Survey(lambda steps, signal: of(steps, signal.advantage)[..., None])
