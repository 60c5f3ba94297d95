"""Straight-line oracles of methods on the forward process: velocities as vectors, cell by cell, from the papers' formulas."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.policy_gradient import _cells, _compared, _ppo, _rows, _z_scores, _zero
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


def _error(table: Table, row: int, step: int, of: Tensor | None) -> Tensor:
    return _mean_square(of[row, step] - table.target[row, step])  # type: ignore[index]


def awm(
    table: Table, *, weight: str = "uniform", power: float = 0.25, clip: float = 1.0, kl: float = 1e-3, std: str = "batch",
    largest: float = 5.0,
) -> Tensor:  # fmt: skip
    scores = _z_scores(table, table.rewards.tolist(), False, 1e-4, std)

    def cell(row: int, step: int) -> Tensor:
        s = float(table.noise[row, step])
        change = {
            "uniform": lambda e: e, "noise": lambda e: s * e, "noise_squared": lambda e: s * s * e,
            "huber": lambda e: s * ((e + 1e-10) ** 0.5 - 1e-5),
            "generalised_huber": lambda e: s * ((e + 1e-10) ** power - 1e-10**power) / power,
        }[weight]  # fmt: skip
        now, before = (change(_error(table, row, step, of)) for of in (table.mean, table.mean_previous))
        pulled = kl * _mean_square(table.mean[row, step] - table.mean_ref[row, step])
        return _ppo(before - now, min(max(scores[row], -largest), largest) / largest, clip, clip) + pulled

    return _every(table, cell)


def _group(table: Table, row: int, step: int) -> list[int]:
    """The rows that a row is compared with, itself among them, that have this draw; none where it has nobody."""
    compared = [other for other, _ in _compared(table, table.rewards.tolist())]
    if row not in compared:
        return []
    return [other for other in compared if table.group[other] == table.group[row] and bool(table.mask[other, step])]


def dgpo(
    table: Table, *, beta: float = 100.0, clip: float | None = 1e-3, kl: float = 1e-3, std: str = "group", largest: float = 5.0
) -> Tensor:
    scores = [min(max(score, -largest), largest) for score in _z_scores(table, table.rewards.tolist(), False, 1e-4, std)]

    def cell(row: int, step: int) -> Tensor:
        pulled = kl * _mean_square(table.mean[row, step] - table.mean_ref[row, step])
        group, own = _group(table, row, step), _error(table, row, step, table.mean)
        if not group:
            return pulled
        total = sum(
            scores[other] * float((_error(table, other, step, table.mean) - _error(table, other, step, table.mean_ref)).detach())
            for other in group
        )
        weight = 1 / (1 + math.exp(-beta * total / len(group)))
        if clip is not None:
            ratio = math.exp(float((_error(table, row, step, table.mean_previous) - own).detach()))
            if (scores[row] > 0 and ratio > 1 + clip) or (scores[row] < 0 and ratio < 1 - clip):
                return pulled
        return weight * scores[row] * own + pulled

    return _every(table, cell)


def crd(
    table: Table, *, beta: float = 1.0, link: str = "squared", weight: str = "absolute", kl: float = 0.1, std: str = "batch",
    largest: float = 5.0,
) -> Tensor:  # fmt: skip
    scores = [min(max(score / largest, -1.0), 1.0) / 2 + 0.5 for score in _z_scores(table, table.rewards.tolist(), False, 1e-4, std)]

    def size(row: int, step: int, of: Tensor) -> float:
        return float((of[row, step] - table.target[row, step]).detach().abs().mean()) if weight == "absolute" else 1.0

    def implied(row: int, step: int) -> Tensor:
        now, before = table.mean, table.mean_previous
        return _error(table, row, step, before) / size(row, step, before) - _error(table, row, step, now) / size(row, step, now)

    def cell(row: int, step: int) -> Tensor:
        pulled, group = kl * _mean_square(table.mean[row, step] - table.mean_ref[row, step]), _group(table, row, step)
        if not group:
            return pulled
        own = beta * (implied(row, step) - statistics.mean(float(implied(other, step).detach()) for other in group))
        wanted = scores[row] - statistics.mean(scores[other] for other in group)
        if link == "squared":
            return largest / beta * (own - wanted) ** 2 + pulled
        label = 1 / (1 + math.exp(-wanted))
        return -largest / beta * (label * torch.sigmoid(own).log() + (1 - label) * torch.sigmoid(-own).log()) + pulled

    return _every(table, cell)


def diffusion_opd(table: Table, *, teachers: dict[str, float], per_scalar: bool = True) -> Tensor:
    def cell(row: int, step: int) -> Tensor:
        kls = {"ref": table.kl, "previous": table.kl_previous}
        total = sum((share * kls[name][row, step] for name, share in teachers.items()), _zero(table))
        return total * (not math.isnan(float(table.rewards[row]))) / (table.event_size if per_scalar else 1)

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
    "awm": [
        ({}, awm),
        ({"weight": "generalised_huber", "power": 0.4, "clip": 0.2, "std": "group", "largest": 0.6, "kl": 0.3}, awm),
        ({"weight": "huber", "clip": 0.05}, awm),
        ({"weight": "noise_squared"}, awm),
        ({"weight": "noise"}, awm),
    ],
    "dgpo": [
        ({}, dgpo),
        ({"beta": 3.0, "clip": None, "kl": 0.2, "std": "batch", "largest": 0.5}, dgpo),
    ],
    "crd": [
        ({}, crd),
        ({"beta": 0.4, "link": "logistic", "weight": "none", "kl": 0.3, "std": "group", "largest": 0.7}, crd),
    ],
    "diffusion_opd": [
        ({"teachers": {"ref": 1.0}}, diffusion_opd),
        ({"teachers": {"ref": 0.3, "previous": 0.7}, "per_scalar": False}, diffusion_opd),
    ],
}
SATURATING = {
    "crd": "the implied reward of a row is regressed on what it should be: a group in which rewards agree with it says nothing",
    "diffusion_opd": "no reward is maximised",
}
