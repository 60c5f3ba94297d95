"""Other ways to stay near a reference: ``log-ratio -> f'(ratio)``, elementwise, the implicit reward of an f-divergence.

RLHF with a penalty ``D_f(pi || ref)`` instead of the reverse KL has the optimum ``reward = beta f'(pi / ref) + constant`` (f-DPO, arXiv
2309.16240), so DPO's score goes through ``f'``. Constants that a difference of two scores cancels are left out. Exponentials go on
along their tangents beyond 20 nats (``parts.bounded_exp``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives.parts import bounded_exp, bounded_expm1
from mmalign.types import UserError


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """``log u``: of ``f(u) = u log u``, DPO itself."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """``-1 / u``: of ``f(u) = -log u``. TRL's is inf from about -88 nats on, and NaN where both rows are there.

    Examples:
        >>> forward_kl(torch.tensor([0.5, 1.0, 2.0]).log())
        tensor([-2.0000, -1.0000, -0.5000])
    """
    return -bounded_exp(-log_ratio)


def jensen_shannon(log_ratio: Tensor) -> Tensor:
    """``log(2 u / (1 + u))`` less ``log 2``: ``log sigmoid(log u)``."""
    return functional.logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, *, alpha: float) -> Tensor:
    """``(u^(alpha - 1) - 1) / (alpha - 1)``; ``log u`` in the limit alpha = 1.

    alpha: 1 is the reverse KL, 0 the forward one up to a constant.

    Examples:
        >>> alpha_divergence(torch.tensor([0.25, 4.0]).log(), alpha=0.5)  # (2 - 1) / (-1/2), (1/2 - 1) / (-1/2)
        tensor([-2.,  1.])
    """
    if abs(alpha - 1) < 1e-6:
        return log_ratio
    return bounded_expm1((alpha - 1) * log_ratio) / (alpha - 1)


def named(name: str, *, alpha: float) -> Callable[[Tensor], Tensor]:
    """The derivative of the divergence of that name; ``alpha`` is for ``alpha`` alone.

    name: ``reverse_kl``, ``forward_kl``, ``js`` or ``alpha``. alpha: of the last.

    Errors: UserError for an unknown name.
    """
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "reverse_kl": reverse_kl,
        "forward_kl": forward_kl,
        "js": jensen_shannon,
        "alpha": lambda log_ratio: alpha_divergence(log_ratio, alpha=alpha),
    }
    if name not in parts:
        raise UserError(f"divergence: got {name!r}, takes one of {', '.join(parts)}")
    return parts[name]


EDGE = -0.5
"""Of ``hellinger_conjugate``, where the curve ends and its tangent goes on: the conjugate is infinite from -1 on."""


def chi_square_conjugate(reward: Tensor) -> Tensor:
    """``f*(-r) = r^2 / 4 - r``: of Pearson's ``f(u) = (u - 1)^2``.

    reward: r.
    """
    return reward.square() / 4 - reward


def hellinger_conjugate(reward: Tensor) -> Tensor:
    """``f*(-r) = -r / (1 + r)``: of the squared Hellinger distance, ``f(u) = (sqrt(u) - 1)^2``; below -1/2 its tangent there.

    reward: r.
    """
    inside = reward.clamp(min=EDGE)
    return -inside / (1 + inside) - (reward - inside) / (1 + EDGE) ** 2


def exponential_conjugate(reward: Tensor) -> Tensor:
    """``f*(-r) = exp(-r) - 1``: of the KL, ``f(u) = u log u - u + 1``.

    reward: r.
    """
    return bounded_expm1(-reward)


def conjugate(name: str) -> Callable[[Tensor], Tensor]:
    """``r -> f*(-r)``, elementwise, of the divergence of that name: 0 and with the slope -1 where the reward r is 0.

    name: ``total_variation`` (``-r``), ``chi_square``, ``hellinger`` or ``kl``.

    Errors: UserError for an unknown name.

    Examples:
        >>> conjugate("chi_square")(torch.tensor([0.0, 2.0]))
        tensor([ 0., -1.])
    """
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "total_variation": torch.neg,
        "chi_square": chi_square_conjugate,
        "hellinger": hellinger_conjugate,
        "kl": exponential_conjugate,
    }
    if name not in parts:
        raise UserError(f"divergence: got {name!r}, takes one of {', '.join(parts)}")
    return parts[name]
