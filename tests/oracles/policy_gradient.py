"""Straight-line oracles of the policy-gradient methods: loops over cells, written from the papers and not from mmalign's parts.

An oracle takes a Table and a method's hyper-parameters, and returns the whole loss as a 0-d tensor.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.oracles.tables import Table


def _cells(table: Table, row: int) -> list[int]:
    return [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]


def _rows(table: Table) -> list[int]:
    return [row for row in range(table.mask.shape[0]) if _cells(table, row)]


def _known(table: Table, rewards: list[float], row: int) -> list[int]:
    """The rows of this row's group whose reward is known."""
    return [other for other in range(len(rewards)) if table.group[other] == table.group[row] and not math.isnan(rewards[other])]


def _compared(table: Table, rewards: list[float]) -> Iterator[tuple[int, list[float]]]:
    """Each row that can be compared, with the known rewards of its group; ties and rows alone in their group are left out."""
    for row, reward in enumerate(rewards):
        others = [rewards[other] for other in _known(table, rewards, row)]
        if not math.isnan(reward) and len(others) > 1 and len(set(others)) > 1:
            yield row, others


def _z_scores(table: Table, rewards: list[float], unbiased: bool, eps: float, std: str = "group") -> list[float]:
    spread = statistics.stdev if unbiased else statistics.pstdev
    everything = [reward for reward in rewards if not math.isnan(reward)]
    scores = [0.0] * len(rewards)
    for row, others in _compared(table, rewards):
        scores[row] = rewards[row] - statistics.mean(others)
        if std != "none":
            scores[row] /= spread(others if std == "group" else everything) + eps
    return scores


def _ppo(log_ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """The negative of PPO's clipped objective at one cell, case by case."""
    ratio = torch.exp(log_ratio)
    if advantage >= 0:
        return -advantage * (ratio if ratio < 1 + high else torch.tensor(1 + high, dtype=torch.float64))
    return -advantage * (ratio if ratio > 1 - low else torch.tensor(1 - low, dtype=torch.float64))


def _kl(table: Table, row: int, step: int, kl: str) -> Tensor:
    gap = table.ref[row, step] - table.log_probs[row, step]
    k2, k3 = gap * gap / 2, torch.exp(gap) - gap - 1
    if kl == "k3_clamped":
        return k3 if k3 < 10 else torch.tensor(10.0, dtype=torch.float64)
    if kl == "k3_weighted":
        return torch.exp(table.log_probs[row, step] - table.old[row, step]) * k3
    if kl == "k3_straight":
        return k2 + float(k3) - float(k2)
    return {"exact": table.kl[row, step], "k1": -gap, "k2": gap * gap / 2, "k3": torch.exp(gap) - gap - 1}[kl]


def _zero(table: Table) -> Tensor:
    return table.log_probs.sum() * 0


def grpo(
    table: Table,
    *,
    clip: float = 0.2,
    dual: float | None = None,
    beta: float = 0.04,
    kl: str = "k3",
    std: str = "group",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    scores, total = _z_scores(table, table.rewards.tolist(), unbiased, eps, std), _zero(table)
    for row in _rows(table):
        inside = _zero(table)
        for step in _cells(table, row):
            cell = _ppo(table.log_probs[row, step] - table.old[row, step], scores[row], clip, clip)
            if dual is not None and scores[row] < 0 and cell > -dual * scores[row]:
                cell = _zero(table) - dual * scores[row]
            inside = inside + cell
            inside = inside + beta * _kl(table, row, step, kl)
        total = total + inside / len(_cells(table, row))
    return total / len(_rows(table))


def va_pi(table: Table, *, clip: float = 1e-4, beta: float = 0.01, truth: float = 0.0, advantage_clip: float | None = 5.0) -> Tensor:
    scores, total = _z_scores(table, table.rewards.tolist(), True, 1e-4, "group"), _zero(table)
    most = math.inf if advantage_clip is None else advantage_clip
    for row in _rows(table):
        inside = _zero(table)
        for step in _cells(table, row):
            score = max(-most, min(most, scores[row]))
            inside = inside + _ppo(table.log_probs[row, step] - table.old[row, step], score, clip, clip)
            inside = inside + beta * _kl(table, row, step, "k3")
            if truth:
                inside = inside - truth * table.others["true"][0][row, step]
        total = total + inside / len(_cells(table, row))
    return total / len(_rows(table))


def gspo(table: Table, *, clip: float, **_: Any) -> Tensor:
    scores, total = _z_scores(table, table.rewards.tolist(), True, 1e-4), _zero(table)
    for row in _rows(table):
        cells = _cells(table, row)
        mean = sum(table.log_probs[row, step] - table.old[row, step] for step in cells) / len(cells)
        total = total + _ppo(mean, scores[row], clip, clip)
    return total / len(_rows(table))


def dapo(
    table: Table,
    *,
    low: float = 0.2,
    high: float = 0.28,
    max_length: int | None = None,
    buffer: int = 4096,
    dual: float | None = None,
    beta: float = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    rewards = table.rewards.tolist()
    for row, length in enumerate(table.lengths.tolist()):
        if max_length is not None and length > max_length:
            rewards[row] -= 1
        elif max_length is not None and length > max_length - buffer:
            rewards[row] += (max_length - buffer - length) / buffer
    scores, total, count = _z_scores(table, rewards, unbiased, eps), _zero(table), 0
    for row in _rows(table):
        for step in _cells(table, row):
            cell = _ppo(table.log_probs[row, step] - table.old[row, step], scores[row], low, high)
            if dual is not None and scores[row] < 0 and cell > -dual * scores[row]:
                cell = _zero(table) - dual * scores[row]
            total = total + cell + beta * _kl(table, row, step, kl)
            count += 1
    return total / count


def dr_grpo(
    table: Table, *, length: float, clip: float = 0.2, beta: float = 0.0, kl: str = "k3", std: str = "none", eps: float = 1e-4
) -> Tensor:
    scores, total = _z_scores(table, table.rewards.tolist(), True, eps, std), _zero(table)
    for row in _rows(table):
        for step in _cells(table, row):
            cell = _ppo(table.log_probs[row, step] - table.old[row, step], scores[row], clip, clip)
            total = total + (cell + beta * _kl(table, row, step, kl)) / length
    return total / len(_rows(table))


def rloo(table: Table, *, ratio: str = "whole_sequence", clip: float | None = None, beta: float = 0.0, kl: str = "k3") -> Tensor:
    rewards, total = table.rewards.tolist(), _zero(table)
    scores = [0.0] * len(rewards)
    for row, _ in _compared(table, rewards):
        scores[row] = rewards[row] - statistics.mean(rewards[other] for other in _known(table, rewards, row) if other != row)
    low, high = (1.0, math.inf) if clip is None else (clip, clip)
    for row in _rows(table):
        cells = _cells(table, row)
        gaps = [table.log_probs[row, step] - table.old[row, step] for step in cells]
        if ratio == "whole_sequence":
            total = total + _ppo(sum(gaps, _zero(table)), scores[row], low, high)
        else:
            total = total + sum(_ppo(gap, scores[row], low, high) for gap in gaps) / len(cells)
        total = total + beta * sum(_kl(table, row, step, kl) for step in cells) / len(cells)
    return total / len(_rows(table))


def cgpo(
    table: Table, *, judges: dict[str, float], optimiser: str = "crpg", most_kl: float | None = None,
    tasks: dict[str, dict[str, Any]] | None = None,
) -> Tensor:  # fmt: skip
    rewards, total, bounds = table.rewards.tolist(), _zero(table), tasks or {}
    far = [sum(float(table.old[row, step] - table.ref[row, step]) for step in _cells(table, row)) for row in range(len(rewards))]
    sound = [all(not float(table.parts[name][row]) < least for name, least in judges.items()) for row in range(len(rewards))]
    task = [next((name for name in bounds if not table.parts[name][row].isnan()), "") for row in range(len(rewards))]
    for row in _rows(table):
        how = bounds.get(task[row], {}).get("optimiser", optimiser)
        most = bounds.get(task[row], {}).get("most_kl", most_kl)
        near = [
            other for other in range(len(rewards))
            if table.group[other] == table.group[row] and task[other] == task[row] and not math.isnan(rewards[other])
            and (most is None or far[other] <= most)
        ]  # fmt: skip
        if row not in near:
            continue
        score = 0.0
        if how == "crpg":
            paid = [rewards[other] if sound[other] else 0.0 for other in near]
            score = (rewards[row] if sound[row] else 0.0) - sum(paid) / len(paid)
        else:
            best = [other for other in near if sound[other] and rewards[other] == max(rewards[one] for one in near if sound[one])]
            score = rewards[row] / len(best) if row in best else 0.0
        total = total - score * sum((table.log_probs[row, step] for step in _cells(table, row)), _zero(table))
    return total / len(_rows(table))


# name of the method -> (hyper-parameters, oracle) of every case; each keyword of a method is moved at least once.
ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "grpo": [
        ({}, grpo),
        ({"clip": 0.05, "beta": 0.3, "kl": "exact", "unbiased": False, "eps": 0.01}, grpo),
        ({"beta": 0.0, "std": "batch"}, grpo),
        ({"beta": 0.0, "std": "none", "dual": 1.3}, grpo),
        ({"beta": 0.0, "ratio": "per_sequence", "clip": 0.02}, gspo),
    ],
    "cgpo": [
        ({"judges": {}, "optimiser": "crraft", "most_kl": 0.5}, cgpo),
        ({"judges": {"second": 0.0}}, cgpo),
        ({"judges": {"second": 0.2}, "most_kl": 0.3, "tasks": {"first": {"optimiser": "crraft", "most_kl": None}}}, cgpo),
    ],
    "dapo": [
        ({}, dapo),
        ({"low": 0.02, "high": 0.15, "max_length": 5, "buffer": 3, "beta": 0.1}, dapo),
        ({"low": 0.05, "beta": 0.1, "kl": "k2", "unbiased": False, "eps": 0.1}, dapo),
        ({"dual": 1.1, "beta": 0.1, "kl": "k3_clamped"}, dapo),
        ({"beta": 0.1, "kl": "k3_straight"}, dapo),
        ({"beta": 0.1, "kl": "k3_weighted"}, dapo),
    ],
    "va_pi": [
        ({}, va_pi),
        ({"clip": 0.1, "beta": 0.3, "truth": 0.7, "advantage_clip": 0.8}, va_pi),
        ({"beta": 0.0, "truth": 2.0, "advantage_clip": None}, va_pi),
    ],
    "dr_grpo": [
        ({"length": 10}, dr_grpo),
        ({"length": 5, "clip": 0.05, "beta": 0.2, "kl": "k2"}, dr_grpo),
        ({"length": 5, "std": "group", "eps": 0.1}, dr_grpo),
    ],
    "rloo": [({}, rloo), ({"ratio": "per_step", "clip": 0.1, "beta": 0.1}, rloo), ({"clip": 0.2, "beta": 0.1, "kl": "k1"}, rloo)],
}
SATURATING = {"cgpo": "of CRRAFT only the best rows have a gradient, and rows too far away have none"}
