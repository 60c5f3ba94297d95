"""Straight-line oracles of losses that train reward models: a column of a table is a dimension, and its numbers are scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.pairs import _cells, _rows, _smooth, expected
from tests.oracles.tables import COLUMNS, Table


def _centred(table: Table, better: int, worse: int, step: int, centre: float) -> Tensor:
    return centre * (table.log_probs[better, step] + table.log_probs[worse, step]) ** 2


def bradley_terry(table: Table, *, margin: float = 0.0, centre: float = 0.0, smoothing: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = table.log_probs[better, step] - table.log_probs[worse, step] - margin * _gap(table, better, worse, margin)
        return torch.log1p(torch.exp(-gap)) + _centred(table, better, worse, step or 0, centre)

    unrated = [number for number, pair in enumerate(table.pairs) if bool(table.rewards[pair].isnan().any())]
    strength = table.strength.index_fill(0, torch.tensor(unrated, dtype=torch.int64), math.nan) if margin else table.strength
    return expected(replace(table, strength=strength), cost, _smooth(smoothing))


def _gap(table: Table, better: int, worse: int, margin: float) -> float:
    return float(table.rewards[better] - table.rewards[worse]) if margin else 0.0


def bradley_terry_ties(table: Table, *, k: float = 5.0, centre: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        up, down = table.log_probs[better, step].exp(), table.log_probs[worse, step].exp()
        places = [number for number, pair in enumerate(table.pairs.tolist()) if set(pair) == {better, worse}]
        tied = float(table.strength[places[0]]) == 0.5
        win = up / (up + k * down)
        p = (k**2 - 1) * up * down / ((up + k * down) * (down + k * up)) if tied else win
        return -p.log() + _centred(table, better, worse, step or 0, centre)

    return expected(table, cost)


def list_mle(table: Table) -> Tensor:
    total, rewards = table.log_probs.sum() * 0, table.rewards.tolist()
    for row in range(len(rewards)):
        mates = [other for other in range(len(rewards)) if table.group[other] == table.group[row] and not math.isnan(rewards[other])]
        if math.isnan(rewards[row]) or len(mates) < 2:
            continue
        for step in _cells(table, row):
            there = [other for other in mates if rewards[other] <= rewards[row] and step in _cells(table, other)]
            chance = table.log_probs[row, step].exp() / sum(table.log_probs[other, step].exp() for other in there)
            total = total - chance.log() / len(_cells(table, row)) / _rows(table)
    return total


def score_regression(table: Table, *, target: str = "rating") -> Tensor:
    total = table.log_probs.sum() * 0
    for row in range(len(table.rewards)):
        for step in _cells(table, row):
            score, rating, label = table.log_probs[row, step], float(table.rewards[row]), float(table.labels[row])
            if target == "rating" and not math.isnan(rating):
                total = total + (score - rating) ** 2 / len(_cells(table, row)) / _rows(table)
            elif target == "label" and not math.isnan(label):
                p = 1 / (1 + torch.exp(-score))
                total = total - (label * p.log() + (1 - label) * (1 - p).log()) / len(_cells(table, row)) / _rows(table)
    return total


def general_preference(table: Table, *, temperature: float = 1.0, normalised: bool = False) -> Tensor:
    def embedding(row: int) -> list[Tensor]:
        numbers = [table.log_probs[row, step] if step in _cells(table, row) else torch.zeros(()).double() for step in range(COLUMNS)]
        length = torch.stack([number**2 for number in numbers]).sum() ** 0.5 if normalised else 1.0
        return [number / length for number in numbers]

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        v, u = embedding(better), embedding(worse)
        ahead = v[0] * u[1] - v[1] * u[0] + v[2] * u[3] - v[3] * u[2]  # of five, the last stands alone
        return torch.log1p(torch.exp(-ahead / temperature))

    return expected(table, cost)


def bradley_terry_gaussian(table: Table) -> Tensor:
    """By Simpson's rule in the Gaussian's own units, on another grid than the code's."""
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    simpson = torch.tensor([1.0] + [4.0, 2.0] * 999 + [4.0, 1.0], dtype=torch.float64) * 0.01 / 3
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * simpson

    def cell(row: int, step: int) -> Tensor:
        return table.log_probs[row, step] if step in _cells(table, row) else torch.zeros(()).double()

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        mean, spread = (step or 0) // 2 * 2, (step or 0) // 2 * 2 + 1
        gap = cell(better, mean) - cell(worse, mean)
        variance = sum(cell(row, spread).exp() if spread < COLUMNS else 1.0 for row in (better, worse))
        return -(density / (1 + torch.exp(-gap - variance**0.5 * grid))).sum().log()

    return expected(table, cost)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "bradley_terry": [
        ({}, bradley_terry),
        ({"margin": 0.7, "smoothing": 0.1}, bradley_terry),
        ({"centre": 0.02}, bradley_terry),
    ],
    "bradley_terry_ties": [({}, bradley_terry_ties), ({"k": 2.0, "centre": 0.1}, bradley_terry_ties)],
    "bradley_terry_gaussian": [({}, bradley_terry_gaussian)],
    "general_preference": [
        ({}, general_preference),
        ({"temperature": 0.5, "normalised": True}, general_preference),
    ],
    "list_mle": [({}, list_mle)],
    "score_regression": [({}, score_regression), ({"target": "label"}, score_regression)],
}

SATURATING = {"general_preference": "of a number without another one beside it, as that test has it, no embedding is made"}
