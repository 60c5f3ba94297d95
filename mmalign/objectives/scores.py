"""What a row is worth to a policy: ``Steps -> [B, 1 or T]``, differentiable; what pairs, lists and thumbs are compared by.

A score adds up the steps of a row: log-ratios to a named reference, or log-probabilities alone. ``over`` says how: ``total``, the sum
in nats; ``per_step``, divided by the row's live steps; ``per_scalar``, the sum divided by the scalars of one event, a mean over the
latent.

**What a column is.** Log-probabilities of tokens and transitions are factors of one density: they add up to the row's, ``[B, 1]``.
A bound's columns are noise draws, each an estimate of the same quantity for the whole row: they are not added, a row's score is
``[B, T]``, and every draw is compared with its twin (the outer expectation of Diffusion-DPO, arXiv 2311.12908, eq. 14). ``total``
and ``per_step`` are then the same. So one sentence serves texts, trajectories and denoising errors. The columns of a
reward model are the dimensions that it scores, and each is compared by itself, too.

A row without a live step, and a dead cell of a bound, have score 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from mmalign.needs import NOISE, refs
from mmalign.objectives.parts import APART, Part, held, live
from mmalign.types import Need, Steps, UserError

Over = Literal["total", "per_step", "per_scalar"]


def log_ratio(steps: Steps, name: str = "ref") -> Tensor:
    """``log pi - log ref`` of each step, ``[B, T]`` nats, 0 in dead cells."""
    return live(steps.log_probs - held(steps, refs(name)), steps.mask)


def log_prob(steps: Steps) -> Tensor:
    """``log pi`` of each step, ``[B, T]`` nats, 0 in dead cells."""
    return live(steps.log_probs, steps.mask)


def over_row(cells: Tensor, steps: Steps, over: Over, share: Tensor | None = None) -> Tensor:
    """Numbers of cells as scores of rows ``[B, 1]``; those of a bound stay ``[B, T]``.

    cells: ``[B, T]``, 0 where dead. over: ``total``, ``per_step`` or ``per_scalar``. share: ``[B, T]``, 0 where dead: what each cell
    counts for. With ``per_step`` a score is the weighted mean.
    """
    share = steps.mask.to(cells.dtype) if share is None else share
    cells = cells * share
    if over == "per_scalar":
        cells = cells / steps.event_size
    if steps.kind in APART:
        return cells
    total = cells.sum(1, keepdim=True)
    if over != "per_step":
        return total
    weight = share.sum(1, keepdim=True)
    return total / torch.where(weight > 0, weight, torch.ones_like(weight))


def _score(cells: Callable[[Steps], Tensor], over: Over, share: Part | None, needs: frozenset[Need]) -> Part:
    if over not in get_args(Over):
        raise UserError(f"margin: got {over!r}, takes one of {', '.join(get_args(Over))}")
    if share is None:
        return Part(lambda steps: over_row(cells(steps), steps, over), needs, "pair")
    return Part(lambda steps: over_row(cells(steps), steps, over, share.of(steps)), needs | share.needs, "pair")


def ratio(over: Over = "total", *, ref: str = "ref", share: Part | None = None) -> Part:
    """Log-ratios to the reference of that name: DPO's implicit reward without its beta.

    over: as in ``over_row``. ref: name of the reference. share: what each step counts for.

    Errors: UserError for an unknown ``over``.
    """
    return _score(lambda steps: log_ratio(steps, ref), over, share, frozenset({refs(ref)}))


def policy(over: Over = "total", *, share: Part | None = None) -> Part:
    """Log-probabilities alone: the score of methods without a reference.

    over: as in ``over_row``. share: what each step counts for.

    Errors: UserError for an unknown ``over``.
    """
    return _score(log_prob, over, share, frozenset())


def mapped(score: Part, change: Callable[[Tensor], Tensor]) -> Part:
    """A score through an elementwise function.

    change: of the score's numbers, one by one.
    """
    return score._replace(of=lambda steps: change(score.of(steps)))


NEARLY_ONE = -math.exp(-20.0)  # nats: a row that is certain up to 2e-9


def log_odds(mean: Tensor) -> Tensor:
    """``log(p / (1 - p))`` for a log-probability per step, at most 0; above ``NEARLY_ONE`` along its tangent, of slope e^20.

    A branch between two formulas by ``torch.where`` (TRL's log1mexp) has the right value and a NaN gradient: 0 * inf of the other one.

    mean: a row's log-probability per step, nats.
    """
    safe = mean.clamp(max=NEARLY_ONE)
    return safe - torch.log(-torch.expm1(safe)) + math.exp(20.0) * torch.relu(mean - NEARLY_ONE)


def errors(*, error: str, half: bool, ref: str = "ref") -> Part:
    """Minus how much larger a row's squared denoising error is than the reference's, ``[B, T]``, for tables of kind ``bound``.

    ``-h (l - l^ref)`` with l the squared error.

    error: l is the ``mean`` or the ``sum`` over the latent. half: h is 1/2, which is what a bound holds, or 1. ref: name of the reference.

    Errors: UserError for another ``error``.
    """
    if error not in ("mean", "sum"):
        raise UserError(f"error: got {error!r}, takes 'mean' or 'sum'")
    score = ratio("per_scalar" if error == "mean" else "total", ref=ref)
    return score if half else mapped(score, lambda error: 2 * error)


def by_noise(score: Part) -> Part:
    """A score times ``(1 - s)^2`` at noise level s, which turns errors of a velocity into errors of the noise.

    ``eps_hat = x + (1 - s) v_hat``, so ``|eps - eps_hat|^2 = (1 - s)^2 |v - v_hat|^2``. Needs ``facts["noise"]``.
    """

    of = lambda steps: score.of(steps) * (1 - live(held(steps, NOISE), steps.mask)) ** 2  # noqa: E731
    return Part(of, score.needs | {NOISE}, "pair")
