"""What corresponds to what in two sets that have nothing in common but the distances inside of each."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS, BALANCING = 40, 20  # of the plan, and of its margins in each
SOFTEST, HARDEST = 0.5, 0.005  # of the entropy's weight, in units of the largest difference of costs


def gromov_wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """``[N, M]`` float64, a plan T of uniform margins that makes ``sum (D1_ik - D2_jl)^2 T_ij T_kl`` small.

    Of distances ``D1 [N, N]`` and ``D2 [M, M]``. Each round is a transport by the gradient at the last plan, softened by an entropy that
    falls (Peyre, Cuturi, Solomon, Gromov-Wasserstein Averaging of Kernel and Distance Matrices, ICML 2016, prop. 1 and 2; that the weight
    of the entropy falls is ours). The problem is not convex: of sets that are like themselves turned round, either plan may come out.
    """
    n, m = len(first), len(second)
    margins = torch.full((n,), 1 / n, dtype=torch.float64), torch.full((m,), 1 / m, dtype=torch.float64)
    plan = margins[0][:, None] * margins[1][None, :]
    for number in range(ROUNDS):
        cost = slope(first, second, plan)
        weight = SOFTEST * (HARDEST / SOFTEST) ** (number / (ROUNDS - 1))
        plan = _balanced(-cost / (weight * (cost.max() - cost.min()).clamp(min=1e-12)), *margins)
    return plan


def slope(first: Tensor, second: Tensor, plan: Tensor) -> Tensor:
    """``[N, M]``: ``2 sum_kl (D1_ik - D2_jl)^2 T_kl``, the gradient of what ``gromov_wasserstein`` makes small, at plan T."""
    rows, columns = plan.sum(1), plan.sum(0)
    return 2 * ((first**2 @ rows)[:, None] + (second**2 @ columns)[None, :] - 2 * first @ plan @ second.T)


def _balanced(logs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``exp(logs)`` with its rows and columns scaled to those sums (Sinkhorn and Knopp)."""
    for _ in range(BALANCING):
        logs = logs - logs.logsumexp(1, keepdim=True) + rows.log()[:, None]
        logs = logs - logs.logsumexp(0, keepdim=True) + columns.log()[None, :]
    return logs.exp()
