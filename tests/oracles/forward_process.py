"""Straight-line oracles of methods on the forward process: velocities as vectors, cell by cell, from the papers' formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.policy_gradient import _cells, _rows, _z_scores, _zero
from tests.oracles.tables import SIZE, Table


def _every(table: Table, cell: Callable[[int, int], Tensor]) -> Tensor:
    """Mean over rows of the mean over a row's draws."""
    total = _zero(table)
    for row in _rows(table):
        total = total + sum(cell(row, step) for step in _cells(table, row)) / len(_cells(table, row))
    return total / len(_rows(table))


def _mean_square(difference: Tensor) -> Tensor:
    return (difference**2).sum() / SIZE


def diffusion_nft(
    table: Table, *, beta: float = 1.0, weight: str = "absolute", largest: float = 5.0, std: str = "batch", kl: float = 1e-4,
    growth: float = 0.001, decay: float = 0.5, flat: float = 0.0,
) -> Tensor:  # fmt: skip
    scores = _z_scores(table, table.rewards.tolist(), False, 1e-4, std)

    def cell(row: int, step: int) -> Tensor:
        v, old, ref = table.mean[row, step], table.mean_previous[row, step], table.mean_ref[row, step]
        target, s = table.target[row, step], float(table.noise[row, step])
        r = min(max(scores[row] / largest, -1.0), 1.0) / 2 + 0.5
        losses = []
        for mixed in ((1 - beta) * old + beta * v, (1 + beta) * old - beta * v):
            if weight == "none":
                losses.append(_mean_square(mixed - target))
            else:
                x = torch.ones_like(v)  # any: it cancels
                clean, guess = x - s * target, x - s * mixed
                losses.append(_mean_square(guess - clean) / max(float((guess - clean).detach().abs().mean()), 1e-5))
        return largest / beta * (r * losses[0] + (1 - r) * losses[1]) + kl * _mean_square(v - ref)

    return _every(table, cell)


def ram(
    table: Table, *, scale: float = 1.0, baseline: str = "group", std: str = "none", eps: float = 1e-4, largest: float | None = None
) -> Tensor:
    scores = _z_scores(table, table.rewards.tolist(), True, eps, std)
    if baseline == "none":
        scores = [0.0 if math.isnan(reward) else reward for reward in table.rewards.tolist()]
    if largest is not None:
        scores = [min(max(score, -largest), largest) for score in scores]

    def cell(row: int, step: int) -> Tensor:
        v, ref, target = table.mean[row, step], table.mean_ref[row, step], table.target[row, step]
        corrected = (ref + scale * scores[row] * (target - v)).detach()
        return _mean_square(v - corrected)

    return _every(table, cell)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "diffusion_nft": [
        ({}, diffusion_nft),
        ({"beta": 0.3, "std": "group", "largest": 0.7, "kl": 0.2}, diffusion_nft),
        ({"beta": 0.3, "weight": "none", "std": "none", "growth": 0.1, "decay": 0.9, "flat": 3.0}, diffusion_nft),
    ],
    "ram": [
        ({}, ram),
        ({"scale": 0.4, "std": "batch", "eps": 0.1, "largest": 0.6}, ram),
        ({"baseline": "none"}, ram),
    ],
}
SATURATING: dict[str, str] = {}
