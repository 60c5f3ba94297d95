"""How the worlds' bases are trained: one loop, whatever they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(  # the settings of a small training loop
    live: nn.Module,
    loss: Callable[[], Tensor],
    *,
    name: str,
    iterations: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    warmup: float = 0.1,
    max_grad_norm: float = math.inf,
    ema_decay: float | None = None,
    progress: bool = True,
) -> None:
    """Minimises ``loss()``, which draws its own batch, over the parameters of ``live``; leaves it in evaluation mode.

    name: of the progress bar. warmup: share of the iterations of a one-cycle schedule. ema_decay: what is left in ``live`` is the
    average of its parameters at this decay; None: the last ones.
    """
    from rich.progress import track

    live.train()
    average = copy.deepcopy(live) if ema_decay is not None else live
    optimizer = torch.optim.AdamW(live.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=betas)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=iterations, pct_start=warmup)
    for _ in track(range(iterations), description=name, disable=not progress):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(live.parameters(), max_grad_norm)
        optimizer.step()
        schedule.step()
        if ema_decay is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - ema_decay)
    live.load_state_dict(average.state_dict())
    live.eval()
