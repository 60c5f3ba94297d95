"""Particles: weights in log space, effective sizes, systematic resampling. Pure functions of tables ``[groups, K]`` in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shares(log_weights: Tensor) -> Tensor:
    """Weights that sum to 1 in each group, ``[groups, K]``. A constant that is added to a group changes nothing; nothing saturates."""
    return torch.softmax(log_weights.double(), dim=1)


def effective_size(log_weights: Tensor) -> Tensor:
    """``1 / sum(share^2)``, ``[groups]``: K where all weigh the same, 1 where one has all of it."""
    return 1 / shares(log_weights).square().sum(1)


def log_mean(log_weights: Tensor) -> Tensor:
    """``ln mean(exp(log_weights))``, ``[groups]``: what a resampling adds to the estimate of the log-normaliser."""
    return torch.logsumexp(log_weights.double(), dim=1) - math.log(log_weights.shape[1])


def systematic(log_weights: Tensor, rng: torch.Generator) -> Tensor:
    """Parents ``[groups, K]`` int64 (places in the group): particle i has floor or ceil of ``K share_i`` children.

    One uniform number for each group (Kitagawa 1996): unbiased, and of less variance than drawing each child by itself.
    """
    groups, count = log_weights.shape
    start = torch.rand((groups, 1), generator=rng, dtype=torch.float64)
    points = (start + torch.arange(count, dtype=torch.float64)) / count
    edges = shares(log_weights).cpu().cumsum(1)
    edges = edges / edges[:, -1:]
    return torch.searchsorted(edges, points.clamp(max=1 - 1e-15), right=True).clamp(max=count - 1)


def one_of_each(log_weights: Tensor, rng: torch.Generator) -> Tensor:
    """One particle ``[groups]`` of each group, drawn by weight (by the largest of weights plus Gumbel noise: no exponentials)."""
    uniform = torch.rand(log_weights.shape, generator=rng, dtype=torch.float64).clamp(min=1e-300)
    return (log_weights.double().cpu() - (-uniform.log()).log()).argmax(1)


def imputed(scores: Tensor) -> Tensor:
    """Scores ``[groups, K]`` in which a missing one stands at the mean of its group: no weight is lost or won by it.

    A group of which nothing is known gets 0, so that it is not resampled.
    """
    alive = scores.isfinite()
    mean = torch.where(alive, scores, 0.0).sum(1, keepdim=True) / alive.sum(1, keepdim=True).clamp(min=1)
    return torch.where(alive, scores, mean)


def best(scores: Tensor) -> Tensor:
    """The place ``[groups]`` of the highest score; a missing one never is, unless nothing is known of the group (then the first)."""
    return torch.where(scores.isfinite(), scores, -math.inf).argmax(1)
