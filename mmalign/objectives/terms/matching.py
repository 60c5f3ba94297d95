"""Squared errors of a bound's predictions, and of mixtures of them, per scalar: ``Steps -> [B, T]``, 0 in dead cells, differentiable.

With e = v - y the error of the current prediction v at the target y, e' that of a reference v', and d = v - v': the table holds
``-|e|^2 / 2`` (``log_probs``), ``-|e'|^2 / 2`` (``refs``) and ``|d|^2 / 2`` (``kls``), which is all that a squared error of any mixture
needs, by the parallelogram law: ``|(1 - b) e' + b e|^2 = (1 - b) |e'|^2 + b |e|^2 - b (1 - b) |d|^2``.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus

from mmalign.needs import NOISE, REALISM, REALISM_OF_GIVEN, absolute, kls, refs
from mmalign.objectives.parts import Part, held, live
from mmalign.types import Steps

SMALLEST = 1e-5  # of an absolute error that is divided by, as in DiffusionNFT's code


def error(steps: Steps) -> Tensor:
    """``|y - v|^2 / D``."""
    return live(-2 * steps.log_probs, steps.mask) / steps.event_size


def error_of(steps: Steps, name: str) -> Tensor:
    """``|y - v'|^2 / D`` of a reference, without gradient."""
    return live(-2 * held(steps, refs(name)), steps.mask) / steps.event_size


def distance(steps: Steps, name: str) -> Tensor:
    """``|v - v'|^2 / D``."""
    return live(2 * held(steps, kls(name)), steps.mask) / steps.event_size


def classified(steps: Steps) -> Tensor:
    """``-log D(given) - log(1 - D(sample))``, D the sigmoid of a classifier's logit: its cross entropy, a GAN discriminator's loss."""
    return softplus(-live(held(steps, REALISM_OF_GIVEN), steps.mask)) + softplus(live(held(steps, REALISM), steps.mask))


def distant(name: str, *, beta: float) -> Part | None:
    """``beta |v - v'|^2 / D``, what public code calls the KL of a velocity; None where ``beta`` is 0.

    name: of the reference. beta: its weight.
    """
    return Part(lambda steps: beta * distance(steps, name), frozenset({kls(name)})) if beta else None


def mixture_error(steps: Steps, name: str, share: float) -> Tensor:
    """``|y - v' - share (v - v')|^2 / D``: of a prediction on the line through the reference's and the current one.

    share: 0 is the reference, 1 the current one; below 0, and above 1, beyond them.
    """
    return (1 - share) * error_of(steps, name) + share * error(steps) - share * (1 - share) * distance(steps, name)


def by_absolute_error(steps: Steps, name: str, share: float) -> Tensor:
    """The mixture's error of the clean estimate, ``x_0 = x_t - s v``, over its mean absolute error, which has no gradient.

    ``s^2 |y - v_mix|^2 / D / max(s mean|y - v_mix|, 1e-5)`` at noise level s of a rectified flow. Needs ``noise`` and ``absolute``.

    share: of the mixture, that of the policy.
    """
    noise, absolute_error = live(held(steps, NOISE), steps.mask), live(held(steps, absolute(name, share)), steps.mask)
    return noise**2 * mixture_error(steps, name, share) / (noise * absolute_error).clamp(min=SMALLEST)


def weighted(steps: Steps, error: Tensor, weight: str, power: float) -> Tensor:
    """A squared error under AWM's weights, at noise level s: ``uniform`` e; ``noise`` s e; ``noise_squared`` s^2 e; ``huber``
    ``s (sqrt(e + 1e-10) - 1e-5)``; ``generalised_huber`` ``s / p ((e + 1e-10)^p - 1e-10^p)``.

    error: ``[B, T]``, 0 where dead. weight: one of these. power: p.
    """
    if weight == "uniform":
        return error
    s = live(held(steps, NOISE), steps.mask)
    if weight in ("noise", "noise_squared"):
        return error * (s if weight == "noise" else s**2)
    shifted = error.clamp(min=0) + 1e-10
    if weight == "huber":
        return s * (shifted.sqrt() - 1e-5)
    return s / power * (shifted**power - 1e-10**power)


def in_groups(signal: Tensor) -> tuple[Tensor, Tensor]:
    """The scores ``[R, 1]`` of rows, and which of them are of one group, ``[R, R]`` float64, itself among them.

    signal: ``[R, 1, 2]``, a score and 1 + the number of a row's group (0: nothing is known of it).
    """
    group = signal[:, 0, 1]
    return signal[:, 0, :1], ((group[:, None] == group[None, :]) & (group[:, None] > 0)).to(signal)
