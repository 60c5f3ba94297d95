"""A policy on one Gaussian as a linear chain, its moments in closed form, and the optimum of its path."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.types import Prediction, UserError
from mmalign.worlds.gaussian import GaussianPolicy

__all__ = ["path_optimum"]


def chain(policy: GaussianPolicy, stochastic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A policy on one Gaussian as the linear chain ``x' = gain x + offset + std z``: three ``[T, D]`` tensors, T from noise to data."""
    if len(policy.mixture.weights) != 1:
        raise UserError(f"chain: got a mixture of {len(policy.mixture.weights)}, takes one Gaussian (others are not linear)")
    probe = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, policy.num_steps, policy.size)
    mean, std = policy.transition(probe, torch.arange(policy.num_steps), stochastic)
    return mean[1] - mean[0], mean[0], std[0]


def propagate(gains: Tensor, offsets: Tensor, stds: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances ``[T + 1, D]`` of a chain's states that start at ``mean``, ``variance`` (``[D]``)."""
    means, variances = [mean], [variance]
    for gain, offset, std in zip(gains, offsets, stds, strict=True):
        means.append(gain * means[-1] + offset)
        variances.append(gain**2 * variances[-1] + std**2)
    return torch.stack(means), torch.stack(variances)


@torch.no_grad()
def path_optimum(policy: GaussianPolicy, linear: Tensor, *, beta: Positive) -> tuple[Tensor, Tensor]:
    """The shifts ``[T, D]`` that maximise ``E[linear . x_T] - beta sum_t KL_t`` on one Gaussian, and that value above the base's.

    A shift moves the mean of step t by ``k_t shift_t``, of which ``G_t = gain_{t+1} ... gain_{T-1}`` arrives at the end, at a KL
    of ``(k_t shift_t)^2 / (2 std_t^2)``. So ``shift_t = G_t std_t^2 linear / (beta k_t)`` and the value is
    ``sum (G_t std_t linear)^2 / (2 beta)``. No policy on these steps does better: it is ``p(path) exp(r / beta) / Z``, given
    the first state. Steps without noise have no KL to pay, and keep shift 0.

    policy: whose steps they are. linear: ``[D]``, the reward of each dimension. beta: reward that a nat costs.
    """
    stochastic = policy.window(policy.num_steps, 0, torch.Generator())
    with policy.using("ref"):
        gains, _, stds = chain(policy, stochastic)
    t, t_next = policy.between(torch.arange(policy.num_steps))
    ones = torch.ones_like(gains)
    moved, _ = policy.kernel(Prediction(ones, -t.signal / t.noise * ones), 0 * ones, t, t_next)  # k_t: what shift 1 does
    after = torch.cat([gains.flip(0).cumprod(0).flip(0)[1:], ones[:1]])
    shifts = torch.where(stds > 0, after * stds**2 * linear / (beta * torch.where(moved == 0, 1.0, moved)), 0.0)
    return shifts, ((after * stds * linear) ** 2).sum() / (2 * beta)
