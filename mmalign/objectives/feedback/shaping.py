"""Rewards into rewards: ``[B] -> [B]``, float64, before advantages are taken; NaN stays NaN."""

from __future__ import annotations

import torch
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


def potential_shaping(potentials: Tensor, mask: Tensor, *, discount: float) -> Tensor:
    """``F_t = discount * Phi(s_{t+1}) - Phi(s_t)`` for each step, 0 outside of the mask: help that changes no order of policies.

    ``sum_t discount^t F_t = discount^T Phi(s_T) - Phi(s_0)``, so that what is left after the last state's potential is taken as 0 is the
    same for whatever is done from ``s_0`` (Ng, Harada and Russell 1999, theorem 1; that the last state has to have none, wherever an
    episode was cut, is Grzes 2017).

    potentials: ``[B, T + 1]`` of the states, the last one's included. mask: ``[B, T]``, live steps, which stand first. discount: of a step.

    Examples:
        >>> potential_shaping(torch.tensor([[-2.0, -1.0, 5.0]]), torch.tensor([[True, True]]), discount=0.5).tolist()
        [[1.5, 1.0]]
    """
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    after = torch.where(last, 0.0, potentials[:, 1:])
    return torch.where(mask, discount * after - potentials[:, :-1], 0.0)


def progress_shaping(potentials: Tensor, mask: Tensor) -> Tensor:
    """``max(Phi(s_{t+1}) - Phi(s_t), 0)`` for each step: what is gained is paid, what is lost costs nothing.

    No potential: who goes back and forth is paid for every time forth, for ever (the bicycle of Randlov and Alstrom 1998, which circled
    about its goal). Here to show what ``potential_shaping`` is for.

    potentials: ``[B, T + 1]`` of the states, the last one's included. mask: ``[B, T]``, live steps.

    Examples:
        >>> progress_shaping(torch.tensor([[-2.0, -1.0, -2.0]]), torch.tensor([[True, True]])).tolist()
        [[1.0, 0.0]]
    """
    return torch.where(mask, (potentials[:, 1:] - potentials[:, :-1]).clamp(min=0), 0.0)
