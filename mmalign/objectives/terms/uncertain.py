"""Pairs compared by scores that are Gaussian: each dimension has a mean and the logarithm of a variance, side by side."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import scores
from mmalign.objectives.parts import SCORES, bounded_exp
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps

ROWS = scores.policy()
NODES = torch.linspace(-9.0, 9.0, 257, dtype=torch.float64)  # standard deviations; e^-40 of the mass is outside
LOG_WEIGHTS = torch.log_softmax(-(NODES**2) / 2, 0)


def log_chance(gap: Tensor, log_variance: Tensor) -> Tensor:
    """``log E sigmoid(d)`` of ``d ~ N(gap, e^log_variance)``, elementwise, by the trapezoid rule.

    The rule's error falls as ``e^(-2 pi^2 / (h std))``, h its step of 0.07: 1e-12 and less up to standard deviations of 10, 1e-3 at 40.

    gap, log_variance: of a difference, of one shape.

    Examples:
        >>> zero = torch.zeros(1).double()
        >>> log_chance(zero, zero).exp()  # by symmetry
        tensor([0.5000], dtype=torch.float64)
    """
    std = bounded_exp(log_variance / 2)
    return torch.logsumexp(LOG_WEIGHTS + functional.logsigmoid(gap[..., None] + std[..., None] * NODES), -1)


def means_and_log_variances(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Means, and logarithms of variances, ``[N, T/2]`` each; an odd last mean has variance 1.

    numbers: ``[N, T]``, mean, log-variance, mean, log-variance, ...
    """
    means = numbers[:, 0::2]
    log_variances = functional.pad(numbers[:, 1::2], (0, means.shape[1] - numbers[:, 1::2].shape[1]))
    return means, log_variances


def log_wins(own: Tensor, other: Tensor) -> Tensor:
    """Log of how probably rows are better than others, in each dimension, ``[N, T/2]``.

    own, other: numbers of rows, ``[N, T]``.
    """
    (up, noise), (down, other_noise) = means_and_log_variances(own), means_and_log_variances(other)
    return log_chance(up - down, torch.logaddexp(noise, other_noise))


def of_columns(dimensions: Tensor, width: int) -> Tensor:
    """What is said of a dimension at both of its numbers, ``[N, width]``.

    dimensions: ``[N, T/2]``. width: T.
    """
    return dimensions.repeat_interleave(2, 1)[:, :width]


def probably_ahead() -> Term:
    """``-log E sigmoid(s_w - s_l)``, s Gaussian, in each dimension."""

    def of(steps: Steps, order: Order) -> Tensor:
        numbers = ROWS.of(steps)
        return of_columns(-log_wins(*order.sides(numbers)), numbers.shape[1])

    def ahead(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(ROWS.of(steps))
        return of_columns((better - worse)[:, 0::2], better.shape[1])

    return Term(of, ROWS.needs, kinds=SCORES, ahead=ahead)
