"""Straight-line oracles of methods that compare rows of one branch, and weigh their steps: loops over cells, from papers and code."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.oracles.denoising import _flow_kl, _limited
from tests.oracles.pairs import _known as _pairs
from tests.oracles.pairs import softplus
from tests.oracles.policy_gradient import _cells, _ppo, _rows, _z_scores, _zero
from tests.oracles.tables import Table


def _normalised(table: Table, keys: list[Any], unbiased: bool, eps: float, std: str) -> list[float]:
    """Each reward less the mean of the rows of its key, over their standard deviation, or that of all; 0 where there is nothing to say."""
    rewards = table.rewards.tolist()
    everything = [reward for reward in rewards if not math.isnan(reward)]
    deviation = statistics.stdev if unbiased else statistics.pstdev
    scores = []
    for key, reward in zip(keys, rewards, strict=True):
        among = [other for other, its in zip(rewards, keys, strict=True) if its == key and not math.isnan(other)]
        if math.isnan(reward) or len(among) < 2 or max(among) == min(among):
            scores.append(0.0)
            continue
        spread = {"group": deviation(among), "batch": deviation(everything), "none": 1.0}[std]
        scores.append((reward - statistics.mean(among)) / (spread + (0 if std == "none" else eps)))
    return scores


def _weighed(table: Table, weight: Callable[[int, int], float]) -> dict[tuple[int, int], float]:
    """A weight of every live cell, over the mean of them all."""
    weights = {(row, step): weight(row, step) for row in _rows(table) for step in _cells(table, row)}
    mean = sum(weights.values()) / len(weights)
    return {cell: value / mean for cell, value in weights.items()}


def _clipped(
    table: Table, scores: list[float], weights: dict[tuple[int, int], float], clip: float, ratio: str, beta: float, kl: str
) -> Tensor:
    total = _zero(table)
    for row in _rows(table):
        cells = _cells(table, row)
        for step in cells:
            gap = (table.log_probs[row, step] - table.old[row, step]) / (table.event_size if ratio == "per_scalar" else 1)
            cell = weights.get((row, step), 1.0) * _ppo(gap, scores[row], clip, clip)
            if beta:
                cell = cell + beta * _flow_kl(table, row, step, kl)
            total = total + cell / len(cells)
    return total / len(_rows(table))


def tempflow_grpo(
    table: Table, *, among: str = "branch", weigh: str = "noise", clip: float = 1e-4, beta: float = 0.0, kl: str = "per_scalar",
    ratio: str = "per_scalar", std: str = "group", unbiased: bool = False, eps: float = 1e-4, advantage_clip: float | None = 5.0,
) -> Tensor:  # fmt: skip
    keys: list[Any] = table.branch.tolist() if among == "branch" else table.group.tolist()
    if among == "step":
        keys = [(group, tuple(mask)) for group, mask in zip(table.group.tolist(), table.mask.tolist(), strict=True)]
    scores = _limited(_normalised(table, keys, unbiased, eps, std), advantage_clip)
    weights = _weighed(table, lambda row, step: float(table.std[row, step])) if weigh == "noise" else {}
    return _clipped(table, scores, weights, clip, ratio, beta, kl)


def flash_grpo(
    table: Table, *, rectify: bool = True, clip: float = 1e-3, beta: float = 0.0, kl: str = "per_scalar", ratio: str = "per_scalar",
    std: str = "batch", unbiased: bool = False, eps: float = 1e-4, advantage_clip: float | None = 5.0,
) -> Tensor:  # fmt: skip
    scores = _limited(_z_scores(table, table.rewards.tolist(), unbiased, eps, std), advantage_clip)
    weights = _weighed(table, lambda row, step: float(table.std[row, step] / table.slope[row, step])) if rectify else {}
    return _clipped(table, scores, weights, clip, ratio, beta, kl)


def b2_diffurl(
    table: Table, *, above: float = 0.5, below: float = 0.5, clip: float = 0.1, ratio: str = "per_scalar", better: float = 1.0,
    worse: float = 1.0, history: int = 8, advantage_clip: float | None = 5.0,
) -> Tensor:  # fmt: skip
    z = _z_scores(table, table.rewards.tolist(), True, 1e-8)
    rewards, scores = table.rewards.tolist(), [0.0] * len(z)
    for row, reward in enumerate(rewards):
        branch = [r for r, its in zip(rewards, table.branch.tolist(), strict=True) if its == table.branch[row] and not math.isnan(r)]
        told = not math.isnan(reward) and max(branch) > min(branch)
        if told and ((reward == max(branch) and z[row] >= above) or (reward == min(branch) and z[row] < -below)):
            scores[row] = _limited([z[row]], advantage_clip)[0] * (better if z[row] > 0 else worse)
    return _clipped(table, scores, {}, clip, ratio, 0.0, "paper")


def d3po(table: Table, *, beta: float = 0.1, clip: float | None = 0.1, ratio: str = "per_scalar") -> Tensor:
    def reward(row: int, step: int) -> Tensor:
        gap = (table.log_probs[row, step] - table.ref[row, step]) / (table.event_size if ratio == "per_scalar" else 1)
        return gap if clip is None else gap.exp().clamp(1 - clip, 1 + clip).log()

    total = _zero(table)
    for first, second, strength in _pairs(table):
        for step in set(_cells(table, first)) & set(_cells(table, second)):
            margin = beta * (reward(first, step) - reward(second, step))
            cost = strength * softplus(-margin) + (1 - strength) * softplus(margin)
            total = total + cost / len(_cells(table, first)) + cost / len(_cells(table, second))
    return total / len(_rows(table))


def step_aware_po(table: Table, *, gap: float = 0.3, beta: float = 10.0, **others: Any) -> Tensor:
    """``gap`` decides which pairs there are, so that of those that are given the loss is D3PO's."""
    return d3po(table, beta=beta, **others)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "tempflow_grpo": [
        ({}, tempflow_grpo),
        ({"among": "step", "clip": 0.05, "beta": 0.1, "std": "batch", "unbiased": True, "eps": 0.01}, tempflow_grpo),
        ({"among": "group", "weigh": "none", "beta": 0.1, "kl": "paper", "ratio": "per_step", "advantage_clip": 0.5}, tempflow_grpo),
    ],
    "flash_grpo": [
        ({}, flash_grpo),
        ({"clip": 0.05, "beta": 0.1, "std": "group", "unbiased": True, "eps": 0.01}, flash_grpo),
        ({"rectify": False, "beta": 0.1, "kl": "paper", "ratio": "per_step", "advantage_clip": 0.5}, flash_grpo),
    ],
    "b2_diffurl": [
        ({}, b2_diffurl),
        ({"above": 0.0, "below": 0.2, "clip": 0.3, "ratio": "per_step", "better": 0.5, "worse": 2.0}, b2_diffurl),
        ({"history": 0, "advantage_clip": 0.6, "above": 0.1, "below": 0.1}, b2_diffurl),
    ],
    "d3po": [
        ({}, d3po),
        ({"beta": 2.0, "clip": None, "ratio": "per_step"}, d3po),
        ({"beta": 5.0, "clip": 0.05}, d3po),
    ],
    "step_aware_po": [
        ({"beta": 2.0, "clip": None, "ratio": "per_step", "gap": 0.0}, step_aware_po),
        ({}, step_aware_po),
    ],
}
