"""Straight-line oracles of policy gradients over denoising steps: loops over cells, from the papers' formulas.

What a paper says of a step's Gaussian is computed from its mean, its std and what was drawn, where the table has them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.policy_gradient import _cells, _compared, _known, _ppo, _rows, _z_scores, _zero
from tests.oracles.tables import Table


def _limited(scores: list[float], advantage_clip: float | None) -> list[float]:
    limit = math.inf if advantage_clip is None else advantage_clip
    return [max(-limit, min(limit, score)) for score in scores]


def _flow_kl(table: Table, row: int, step: int, kl: str) -> Tensor:
    """The dialects as their codes write them, from the Gaussians themselves where the table has them."""
    if table.mean is None or table.mean_ref is None:
        return table.kl[row, step]
    square = (table.mean[row, step] - table.mean_ref[row, step]) ** 2
    std, length = float(table.std[row, step]), abs(float(table.dt[row, step]))
    rate = std / math.sqrt(length)  # flow_grpo's std_dev_t: the noise per square root of time
    if kl == "paper":
        return square.sum() / (2 * rate**2 * length)
    if kl == "per_scalar":
        return square.mean() / (2 * std**2)
    return square.mean() / (2 * rate**2) if kl == "flow_grpo" else square.mean()


def flow_grpo(
    table: Table,
    *,
    clip: float = 1e-4,
    beta: float = 0.0,
    kl: str = "paper",
    ratio: str = "per_scalar",
    std: str = "batch",
    unbiased: bool = False,
    eps: float = 1e-4,
    advantage_clip: float | None = 5.0,
) -> Tensor:
    limit = math.inf if advantage_clip is None else advantage_clip
    scores = [max(-limit, min(limit, score)) for score in _z_scores(table, table.rewards.tolist(), unbiased, eps, std)]
    total = _zero(table)
    for row in _rows(table):
        cells = _cells(table, row)
        for step in cells:
            log_ratio = table.log_probs[row, step] - table.old[row, step]
            if ratio != "per_step":
                log_ratio = log_ratio / table.event_size
            if ratio == "cps":
                log_ratio = log_ratio * 2 * float(table.std[row, step]) ** 2
            cell = _ppo(log_ratio, scores[row], clip, clip)
            if beta:
                cell = cell + beta * _flow_kl(table, row, step, kl)
            total = total + cell / len(cells)
    return total / len(_rows(table))


def _drawn(table: Table, row: int, step: int) -> tuple[Tensor, Tensor, float]:
    """The mean's move since the step was sampled, the noise that was drawn then, and the std."""
    assert table.mean is not None and table.mean_old is not None and table.x_next is not None
    std = float(table.std[row, step])
    return table.mean[row, step] - table.mean_old[row, step], (table.x_next[row, step] - table.mean_old[row, step]) / std, std


def grpo_guard(
    table: Table,
    *,
    clip: float = 2e-6,
    beta: float = 0.0,
    kl: str = "flow_grpo",
    reweigh: str = "length",
    std: str = "batch",
    unbiased: bool = False,
    eps: float = 1e-4,
    advantage_clip: float | None = 5.0,
) -> Tensor:
    scores = _limited(_z_scores(table, table.rewards.tolist(), unbiased, eps, std), advantage_clip)
    total = _zero(table)
    for row in _rows(table):
        for step in _cells(table, row):
            move, drawn, _ = _drawn(table, row, step)
            cell = _ppo((drawn * move).mean(), scores[row], clip, clip)
            if reweigh == "length":
                cell = cell / abs(float(table.dt[row, step]))
            total = total + (cell + beta * _flow_kl(table, row, step, kl)) / len(_cells(table, row))
    return total / len(_rows(table))


def flow_dppo(
    table: Table,
    *,
    largest: float = 1e-5,
    beta: float = 0.0,
    kl: str = "flow_grpo",
    ratio: str = "per_scalar",
    std: str = "batch",
    unbiased: bool = False,
    eps: float = 1e-4,
    advantage_clip: float | None = 5.0,
) -> Tensor:
    scores = _limited(_z_scores(table, table.rewards.tolist(), unbiased, eps, std), advantage_clip)
    total = _zero(table)
    for row in _rows(table):
        for step in _cells(table, row):
            move, _, deviation = _drawn(table, row, step)
            log_ratio = (table.log_probs[row, step] - table.old[row, step]) / (table.event_size if ratio == "per_scalar" else 1)
            apart = float((move.detach() ** 2).mean()) / (2 * deviation**2)
            outwards = (scores[row] > 0 and float(log_ratio.detach()) > 0) or (scores[row] < 0 and float(log_ratio.detach()) < 0)
            if not (outwards and apart >= largest):
                total = total - torch.exp(log_ratio) * scores[row] / len(_cells(table, row))
            total = total + beta * _flow_kl(table, row, step, kl) / len(_cells(table, row))
    return total / len(_rows(table))


def ddpo(
    table: Table,
    *,
    estimator: str = "importance",
    clip: float = 1e-4,
    ratio: str = "per_scalar",
    baseline: str = "group",
    eps: float = 1e-6,
    advantage_clip: float | None = 5.0,
) -> Tensor:
    rewards = table.rewards.tolist()
    if baseline == "batch":
        known = [reward for reward in rewards if not math.isnan(reward)]
        mean, spread = statistics.mean(known), statistics.pstdev(known)
        scores = [0.0 if math.isnan(reward) else (reward - mean) / (spread + eps) for reward in rewards]
    else:
        scores = _z_scores(table, rewards, False, eps)
    scores, total = _limited(scores, advantage_clip), _zero(table)
    size = table.event_size if ratio == "per_scalar" else 1
    for row in _rows(table):
        for step in _cells(table, row):
            log_prob = table.log_probs[row, step] / size
            cell = (
                -scores[row] * log_prob if estimator == "score" else _ppo(log_prob - table.old[row, step] / size, scores[row], clip, clip)
            )
            total = total + cell / len(_cells(table, row))
    return total / len(_rows(table))


def dpok(
    table: Table, *, alpha: float = 10.0, beta: float = 0.01, baseline: str = "group", clip: float | None = None, ratio: str = "per_step"
) -> Tensor:
    rewards, total = table.rewards.tolist(), _zero(table)
    assert table.mean is not None and table.mean_ref is not None
    everything = [reward for reward in rewards if not math.isnan(reward)]
    informative = {row for row, _ in _compared(table, rewards)}
    for row in _rows(table):
        advantage = 0.0
        if not math.isnan(rewards[row]):
            of_group = statistics.mean(rewards[other] for other in _known(table, rewards, row))
            centre = {"none": 0.0, "group": of_group, "batch": statistics.mean(everything)}[baseline]
            advantage = rewards[row] - centre if baseline != "group" or row in informative else 0.0
        for step in _cells(table, row):
            square = (table.mean[row, step] - table.mean_ref[row, step]) ** 2
            gap = (table.log_probs[row, step] - table.old[row, step]) / (1 if ratio == "per_step" else table.event_size)
            policy = -advantage * table.log_probs[row, step] if clip is None else _ppo(gap, advantage, clip, clip)
            total = total + alpha * policy + beta * square.sum() / (2 * float(table.std[row, step]) ** 2)
    return total / len(_rows(table))


def gardo(
    table: Table,
    *,
    diversity: str = "diversity",
    auxiliary: tuple[str, ...] = (),
    gated: float | str = "adapted",
    clip: float = 1e-5,
    beta: float = 0.0,
    kl: str = "flow_grpo",
    ratio: str = "per_scalar",
    advantage_clip: float | None = 5.0,
) -> Tensor:
    rewards, far, total = table.rewards.tolist(), table.parts[diversity].tolist(), _zero(table)
    known = [row for row, reward in enumerate(rewards) if not math.isnan(reward)]

    def rank(values: list[float], row: int) -> float:
        """Its place among all rows that are known, the mean of places where some tie."""
        order = sorted(values[other] for other in known)
        return statistics.mean(place for place, value in enumerate(order, start=1) if value == values[row])

    scores, doubts = [0.0] * len(rewards), dict[int, float]()
    for row, others in _compared(table, rewards):
        scores[row] = rewards[row] - statistics.mean(others)
        if scores[row] > 0:
            scores[row] *= far[row] / statistics.mean(far[other] for other in _known(table, rewards, row))
    for row in known:
        doubts[row] = rank(rewards, row) - statistics.mean([rank(table.parts[name].tolist(), row) for name in auxiliary] or [0.0])
    above = sorted(doubt for doubt in doubts.values() if doubt >= 0)
    part = 0.1 if isinstance(gated, str) else gated  # what it is adapted from
    place = (1 - part) * (len(above) - 1)  # numpy's percentile, between two neighbours
    bar = above[math.floor(place)] + (place % 1) * (above[math.ceil(place)] - above[math.floor(place)])
    pays = {row for row, doubt in doubts.items() if not auxiliary or doubt > bar}
    scores = _limited(scores, advantage_clip)
    for row in _rows(table):
        for step in _cells(table, row):
            gap = (table.log_probs[row, step] - table.old[row, step]) / (table.event_size if ratio == "per_scalar" else 1)
            cell = _ppo(gap, scores[row], clip, clip) + (beta * _flow_kl(table, row, step, kl) if row in pays else 0)
            total = total + cell / len(_cells(table, row))
    return total / len(_rows(table))


def dance_grpo(table: Table, *, best_of: int | None = None, **others: Any) -> Tensor:
    """Rows are chosen by the recipe, so that of those that are there the loss is that of every other GRPO."""
    return flow_grpo(table, **{"kl": "per_scalar", "std": "group", "unbiased": True, "eps": 1e-8, **others})


# name of the method -> (hyper-parameters, oracle) of every case; each keyword of a method is moved at least once.
ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "flow_grpo": [
        ({}, flow_grpo),
        ({"clip": 0.05, "beta": 0.1, "std": "group", "unbiased": True, "eps": 0.01}, flow_grpo),
        ({"clip": 0.3, "beta": 0.1, "ratio": "per_step", "kl": "per_scalar", "advantage_clip": 0.5}, flow_grpo),
        ({"clip": 0.01, "beta": 0.04, "ratio": "cps", "kl": "flow_grpo", "advantage_clip": None}, flow_grpo),
        ({"beta": 0.04, "kl": "mean_distance", "std": "none"}, flow_grpo),
    ],
    "grpo_guard": [
        ({}, grpo_guard),
        ({"clip": 0.02, "beta": 0.1, "std": "group", "unbiased": True, "eps": 0.01}, grpo_guard),
        ({"clip": 0.1, "beta": 0.1, "kl": "paper", "reweigh": "none", "advantage_clip": 0.5}, grpo_guard),
    ],
    "flow_dppo": [
        ({}, flow_dppo),
        ({"largest": 0.1, "beta": 0.1, "std": "group", "unbiased": True, "eps": 0.01}, flow_dppo),
        ({"largest": 0.2, "beta": 0.1, "kl": "paper", "ratio": "per_step", "advantage_clip": 0.5}, flow_dppo),
    ],
    "ddpo": [
        ({}, ddpo),
        ({"clip": 0.05, "ratio": "per_step", "baseline": "batch", "eps": 0.1}, ddpo),
        ({"estimator": "score", "advantage_clip": None}, ddpo),
        ({"estimator": "score", "ratio": "per_step", "advantage_clip": 0.5}, ddpo),
    ],
    "dpok": [
        ({}, dpok),
        ({"alpha": 2.0, "beta": 0.5, "baseline": "none"}, dpok),
        ({"clip": 0.1, "baseline": "batch"}, dpok),
        ({"clip": 0.01, "ratio": "per_scalar"}, dpok),
    ],
    "gardo": [
        ({"diversity": "hardness"}, gardo),
        ({"diversity": "hardness", "beta": 0.1, "kl": "paper", "clip": 0.1, "ratio": "per_step", "advantage_clip": 0.5}, gardo),
        ({"diversity": "hardness", "auxiliary": ("first", "second"), "gated": 0.6, "beta": 0.5}, gardo),
    ],
    "dance_grpo": [
        ({}, dance_grpo),
        ({"clip": 0.05, "beta": 0.1, "std": "batch", "eps": 0.01, "best_of": 4}, dance_grpo),
        ({"clip": 0.3, "beta": 0.1, "kl": "flow_grpo", "ratio": "per_step", "advantage_clip": 0.5}, dance_grpo),
    ],
}
# Dialects that differ from the exact KL by facts of a Gaussian step mean nothing on tokens.
GAUSSIAN = {"cps", "flow_grpo", "mean_distance"}
