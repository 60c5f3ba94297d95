"""Preference Ranking Optimization."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import scores, weights
from mmalign.objectives.parts import live
from mmalign.objectives.sentences.listwise import Order, lists, log_sum
from mmalign.types import Method, Steps


def pro(*, sft: float = 0.05, temperature: bool = True) -> Method:
    """Each row of a list against all that are worse, the more sharply the farther apart their rewards are. No reference.

    With p the mean log-probability of a row's steps, and over the rows j that are worse than i
    ``T_ij = 1 / (r_i - r_j)``, ``T_ii = min_j T_ij``::

        loss = mean over rows i of  log(exp(p_i / T_ii) + sum_j exp(p_j / T_ij)) - p_i / T_ii  + sft [i is best] mean_t -log pi(i, t)

    Args:
        sft: weight of the likelihood of the best row, 0 or more.
        temperature: as above; False has T = 1.

    Paper: Preference Ranking Optimization for Human Alignment, arXiv 2306.17492, eq. 5 to 8.

    Deviations: the paper sums over the places of a list, this is their mean over its rows; a row with nothing below adds 0. ``sft``
    scales with the length of a list in the authors' scripts, ``.05 (n - 1)^2``; their code takes log(1e-10 + sum exp).
    """

    def value(found: Tensor, order: Order) -> Tensor:
        apart = (order.rewards - order.rewards.T)[..., None] if temperature else torch.ones_like(found[:, None])
        gaps = live(apart.expand_as(order.below), order.below)
        own = found * gaps.amax(1)
        rest = log_sum(found[None] * gaps, order.below)
        return live(functional.softplus(rest - own), order.below.any(1))

    def likelihood(steps: Steps, order: Order) -> Tensor:
        return -sft * live(steps.log_probs, order.best)

    return lists(
        score=scores.policy("per_step"),
        value=value,
        weigh=weights.sequence_mean,
        extra=likelihood if sft else None,
        kinds=frozenset({"token", "transition"}),
    )
