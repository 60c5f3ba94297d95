"""Rewards into rewards: ``[B] -> [B]``, float64, before advantages are taken; NaN stays NaN."""

from __future__ import annotations

from torch import Tensor

from mmalign.types import UserError


def soft_overlong(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """``clip((max_length - buffer - length) / buffer, -1, 0)``: what a row pays for ending in the last ``buffer`` steps.

    0 up to ``max_length - buffer`` steps, -1 from ``max_length`` on, linear between (DAPO, arXiv 2503.14476, eq. 13).

    max_length: steps from which the price is 1. buffer: steps before that in which it rises.

    Examples:
        >>> soft_overlong(torch.tensor([6, 9, 12]), max_length=10, buffer=4).tolist()
        [0.0, -0.75, -1.0]
    """
    if not 0 < buffer <= max_length:
        raise UserError(f"buffer: got {buffer}, takes 1 to max_length ({max_length}) steps")
    return ((max_length - buffer - lengths.double()) / buffer).clamp(-1, 0)
