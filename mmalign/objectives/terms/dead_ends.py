"""What follows from each step at its best, where all that counts is whether an episode ends badly."""

from __future__ import annotations

import torch
from torch import Tensor


def backed_up(values: Tensor, mask: Tensor, bad: Tensor) -> Tensor:
    """``[B, T]``: of each live step the value of the next one, of the last one minus ``bad``; Bellman's targets without a discount.

    values: ``[B, T]``, of the states that steps are taken in. mask: live steps. bad: ``[B]``, 1 for rows that ended badly, else 0.
    """
    target, after = torch.zeros_like(values), -bad.to(values)
    for step in reversed(range(mask.shape[1])):
        target[:, step] = after
        after = torch.where(mask[:, step], values[:, step], after)
    return target
