"""What the steps of a rollout are, asked before anything is sampled: which of them are random, and whether branches fit a group."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.samplers.branches import Branches
from mmalign.samplers.windows import Window
from mmalign.types import Method, UserError


def masks(window: Window, random: Window | None, num_steps: int, step: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which steps take noise, and which are trained, ``[T]`` bool each. Errors: UserError for masks of another length."""
    trained = window(num_steps, step, rng)
    noisy = trained if random is None else trained | random(num_steps, step, rng)
    for name, mask in (("window", trained), ("random", noisy)):
        if tuple(mask.shape) != (num_steps,):
            got = f"got a mask of shape {list(mask.shape)}"
            raise UserError(f"policy.schedule.{name}: {got}, takes [{num_steps}], one for each denoising step")
    return noisy, trained


def refuse(
    method: Method, window: Window, random: Window | None, branches: Branches | None, *, num_steps: int, group_size: int, steps: int,
    order: int = 1,
) -> None:  # fmt: skip
    """Errors: UserError, before a run of so many training ``steps``, for branches that do not divide a group, for a window that does not
    fit ``num_steps`` denoising steps beside them, and for what they, and steps of a higher ``order``, do not go with."""
    if order > 1 and method.reward_gradient is not None:
        raise UserError(f"policy.schedule.order: got {order}, and this method goes back through steps one by one; takes 1")
    if branches is None:
        return
    if method.behaviors or method.reward_gradient is not None:
        why = "lets others draw rows" if method.behaviors else "carries the gradient of rewards through whole rows"
        raise UserError(f"policy.schedule.branches: given, and this method {why}; takes none")
    seen = set[bytes]()
    for step in range(steps):
        rng = torch.Generator().manual_seed(step)
        noisy, trained = masks(window, random, num_steps, step, rng)
        key = torch.cat([noisy, trained]).numpy().tobytes()
        if key not in seen:
            branches(trained, noisy, group_size, rng)
        seen.add(key)
