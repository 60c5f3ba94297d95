"""Somebody runs: fast or slowly, upright or bent, steadily or bobbing. Which is wanted is a matter of taste, and can be measured.

A state is ``(x, z)``, how far one has come and how high one's head is. Letters: N motions, H steps, K attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Positive

__all__ = ["Control", "runner"]


@dataclass(frozen=True)
class Control:
    """A world that is run in: any functions of these shapes, float32.

    attributes: K names. record: ``(count, rng) -> [N, H + 1, D]`` motions of somebody without a will. measure: ``[N, H + 1, D] -> [N, K]``,
    each attribute in units of its own, the more the stronger. step: ``(states [N, D], actions [N, D], rng) -> [N, D]``, where an action
    is the change of state that is wanted.
    """

    attributes: tuple[str, ...]
    record: Callable[[int, torch.Generator], Tensor]
    measure: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor, torch.Generator], Tensor]


def runner(*, horizon: Count = 15, most: Positive = 0.6, noise: NotNegative = 0.02) -> Control:
    """The world of the standard planner: ``speed`` (mean step ahead), ``height`` (mean of z), ``bobbing`` (how far z swings).

    horizon: steps of a motion. most: that a state changes in a step, in either direction. noise: of a step, its standard deviation.
    """

    def record(count: int, rng: torch.Generator) -> Tensor:
        speed, height, swing, phase = torch.rand(4, count, 1, generator=rng)
        time = torch.arange(horizon + 1)
        steps = 0.1 + 0.4 * speed + noise * torch.randn(count, horizon, generator=rng)
        x = torch.cat([torch.zeros(count, 1), steps.cumsum(1)], 1)
        z = 0.5 + height + 0.4 * swing * torch.sin(1.2 * time + 6.283 * phase) + noise * torch.randn(count, horizon + 1, generator=rng)
        return torch.stack([x, z], -1)

    def measure(motions: Tensor) -> Tensor:
        x, z = motions.unbind(-1)
        return torch.stack([(x[:, -1] - x[:, 0]) / (x.shape[1] - 1), z.mean(1), z.std(1)], -1)

    def step(states: Tensor, actions: Tensor, rng: torch.Generator) -> Tensor:
        return states + actions.clamp(-most, most) + noise * torch.randn(states.shape, generator=rng)

    return Control(("speed", "height", "bobbing"), record, measure, step)
