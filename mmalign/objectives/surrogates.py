"""What is minimised in place of minus the expected reward: ``log_ratio [B, T], advantage [B, 1 or T] -> Surrogate``.

Finite, with finite gradients, for log-ratios of any size: the exponential is ``parts.bounded_exp``, exact up to 20 nats and
linear beyond.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.objectives.parts import bounded_exp, bounded_expm1
from mmalign.types import UserError


class Surrogate(NamedTuple):
    """``values [B, T]``: unreduced loss, to be minimised. ``clipped [B, T]`` bool: cells whose gradient the clip took away."""

    values: Tensor
    clipped: Tensor


def _check(log_ratio: Tensor, advantage: Tensor) -> None:
    rows = log_ratio.shape[0]
    if log_ratio.ndim != 2 or advantage.shape not in ((rows, 1), log_ratio.shape):
        got = f"log_ratio {list(log_ratio.shape)} and advantage {list(advantage.shape)}"
        raise UserError(f"surrogate: got {got}, takes [B, T] and [B, 1 or T]")


def unclipped(log_ratio: Tensor, advantage: Tensor) -> Surrogate:
    """``-rho A``: at ``rho = 1`` its gradient is REINFORCE's, ``-A grad log pi``; elsewhere it is importance-weighted."""
    _check(log_ratio, advantage)
    return Surrogate(-bounded_exp(log_ratio) * advantage, torch.zeros_like(log_ratio, dtype=torch.bool))


def clipped(log_ratio: Tensor, advantage: Tensor, *, low: float, high: float, dual: float | None = None) -> Surrogate:
    """``-min(rho A, clip(rho, 1 - low, 1 + high) A)``, PPO (arXiv 1707.06347, eq. 7).

    low, high: how far the ratio may go below and above 1 before its gradient stops.
    dual: c > 1; where ``A < 0`` the loss is at most ``-c A`` (dual clip, arXiv 1912.09729; verl has it on at 3). None: off.

    Examples:
        >>> ratio = torch.tensor([[1.0, 1.5, 0.5]])
        >>> clipped(ratio.log(), torch.tensor([[2.0]]), low=0.2, high=0.2)
        Surrogate(values=tensor([[-2.0000, -2.4000, -1.0000]]), clipped=tensor([[False,  True, False]]))
    """
    _check(log_ratio, advantage)
    if not (0 <= low <= 1 and high >= 0):
        raise UserError(f"clip: got low={low}, high={high}, takes low in 0..1 and high of 0 or more")
    if dual is not None and dual <= 1:
        raise UserError(f"dual: got {dual}, takes a number above 1 or None")
    ratio = bounded_exp(log_ratio)
    values = -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    cut = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    if dual is not None:
        values = torch.where(advantage < 0, torch.minimum(values, -dual * advantage), values)
        cut = cut | ((advantage < 0) & (ratio > dual))
    return Surrogate(values, cut)


def likelihood(log_probs: Tensor, advantage: Tensor) -> Surrogate:
    """``-A log pi``, whose gradient is REINFORCE's: for ``ratios.LIKELIHOOD``, and importance weights, if any, in a gate."""
    _check(log_probs, advantage)
    return Surrogate(-log_probs * advantage, torch.zeros_like(log_probs, dtype=torch.bool))


def sigmoid(log_ratio: Tensor, advantage: Tensor, *, positive: float, negative: float) -> Surrogate:
    """``-4 / tau sigmoid(tau (rho - 1)) A``, tau by the sign of A: a clip with soft edges (SAPO, arXiv 2511.20347).

    At ``rho = 1`` its gradient is that of ``-rho A``; it fades on both sides, the faster the larger tau.

    positive, negative: tau where the advantage is above 0, and elsewhere; above 0.

    Examples:
        >>> sigmoid(torch.tensor([[0.0]]), torch.tensor([[3.0]]), positive=1.0, negative=1.05).values  # -4 sigmoid(0) 3
        tensor([[-6.]])
    """
    _check(log_ratio, advantage)
    if not (positive > 0 and negative > 0):
        raise UserError(f"temperature: got {positive} and {negative}, takes numbers above 0")
    tau = torch.where(advantage > 0, log_ratio.new_tensor(positive), log_ratio.new_tensor(negative))  # two bare floats make a float32
    soft = torch.sigmoid(tau * bounded_expm1(log_ratio)) * 4 / tau
    return Surrogate(-soft * advantage, torch.zeros_like(log_ratio, dtype=torch.bool))
