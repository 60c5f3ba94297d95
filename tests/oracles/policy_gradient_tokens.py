"""Straight-line oracles of newer policy gradients on tokens, and of on-policy distillation: loops over cells, from the formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.policy_gradient import _cells, _compared, _ppo, _rows, _z_scores, _zero
from tests.oracles.tables import Table


def _over_rows(table: Table, cell: Callable[[int, int], Tensor], length: float | None) -> Tensor:
    """The mean over tokens, or the sum over a row's by a constant and the mean over rows."""
    rows = _rows(table)
    total = sum((cell(row, step) for row in rows for step in _cells(table, row)), _zero(table))
    return total / (sum(len(_cells(table, row)) for row in rows) if length is None else length * len(rows))


def maxrl(table: Table, *, clip: float = 0.2, length: float | None = None, eps: float = 1e-6) -> Tensor:
    rewards, scores = table.rewards.tolist(), [0.0] * len(table.rewards)
    for row, others in _compared(table, rewards):
        mean, size = sum(others) / len(others), sum(map(abs, others)) / len(others)
        scores[row] = (rewards[row] - mean) / (size + eps)
    return _over_rows(table, lambda row, step: _ppo(table.log_probs[row, step] - table.old[row, step], scores[row], clip, clip), length)


def drpo(table: Table, *, delta: float = 0.2, length: float | None = None, std: str = "group", eps: float = 1e-4) -> Tensor:
    scores = _z_scores(table, table.rewards.tolist(), True, eps, std)

    def cell(row: int, step: int) -> Tensor:
        old = torch.exp(table.old[row, step])
        ratio = torch.exp(table.log_probs[row, step]) / old
        return -ratio * scores[row] + abs(scores[row]) * old * (ratio - 1) ** 2 / (2 * delta)

    return _over_rows(table, cell, length)


def opd(table: Table, *, teacher: str, discount: float = 0.0, reward: float = 0.0, clip: float | None = None) -> Tensor:
    judge, known = getattr(table, teacher), ~table.rewards.isnan()
    scores = _z_scores(table, table.rewards.tolist(), True, 1e-4)

    def cell(row: int, step: int) -> Tensor:
        log_ratio, advantage = table.log_probs[row, step] - table.old[row, step], 0.0
        if known[row]:
            after = [later for later in _cells(table, row) if later >= step]
            gaps = [float(judge[row, later] - table.old[row, later]) for later in after]
            advantage = sum(discount**place * gap for place, gap in enumerate(gaps)) + reward * scores[row]
        return -torch.exp(log_ratio) * advantage if clip is None else _ppo(log_ratio, advantage, clip, clip)

    return _over_rows(table, cell, None)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "maxrl": [({}, maxrl), ({"clip": 0.05, "length": 7.0, "eps": 0.1}, maxrl)],
    "drpo": [({}, drpo), ({"delta": 0.05, "length": 7.0, "std": "none"}, drpo), ({"std": "batch", "eps": 0.1}, drpo)],
    "opd": [
        ({"teacher": "ref"}, opd),
        ({"teacher": "previous", "discount": 0.7, "reward": 0.5}, opd),
        ({"teacher": "ref", "discount": 1.0, "clip": 0.05}, opd),
    ],
}


SATURATING = {"opd": "no reward is maximised"}
