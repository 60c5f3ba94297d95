"""Straight-line oracles of the methods that learn from single rows: loops over rows and cells, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.tables import Table


def _units(table: Table) -> list[tuple[int, list[int]]]:
    """(row, its cells) of what is one comparison each: a row, or for a bound every cell."""
    terms = []
    for row in range(table.mask.shape[0]):
        cells = [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]
        terms += [(row, [cell]) for cell in cells] if table.kind == "bound" else [(row, cells)] if cells else []
    return terms


def _ratio(policy: Tensor, reference: Tensor, row: int, cells: list[int]) -> Tensor:
    return sum((policy[row, cell] - reference[row, cell] for cell in cells), torch.zeros((), dtype=torch.float64))


def _share(table: Table, row: int, cells: list[int]) -> float:
    """What one comparison counts in the mean over rows: a draw of a bound is a part of its row."""
    rows = int(table.mask.any(1).sum())
    return len(cells) / int(table.mask[row].sum()) / rows


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def kto(table: Table, *, beta: float = 0.1, desirable: float = 1.0, undesirable: float = 1.0, baseline: str = "mismatched") -> Tensor:
    known = [(row, cells) for row, cells in _units(table) if not math.isnan(float(table.labels[row]))]
    policy, reference = table.others["mismatched"] if baseline == "mismatched" else (table.log_probs, table.ref)
    z = 0.0
    if baseline != "zero":
        z = max(0.0, sum(float(_ratio(policy, reference, row, cells).detach()) for row, cells in known) / len(known))
    total = table.log_probs.sum() * 0
    for row, cells in known:
        ratio, p = _ratio(table.log_probs, table.ref, row, cells), float(table.labels[row])
        up = desirable * (1 - _sigmoid(beta * (ratio - z)))
        down = undesirable * (1 - _sigmoid(beta * (z - ratio)))
        total = total + _share(table, row, cells) * (p * up + (1 - p) * down)
    return total


def sft(table: Table) -> Tensor:
    total, cells = table.log_probs.sum() * 0, int(table.mask.sum())
    for row, label in enumerate(table.labels.tolist()):
        for step in range(table.mask.shape[1]):
            if bool(table.mask[row, step]) and not math.isnan(label):
                total = total - label * table.log_probs[row, step] / cells
    return total


def bco(table: Table, *, beta: float = 0.1) -> Tensor:
    known = [(row, cells) for row, cells in _units(table) if not math.isnan(float(table.labels[row]))]
    rewards = [beta * _ratio(table.log_probs, table.ref, row, cells) for row, cells in known]
    delta = sum(float(reward.detach()) for reward in rewards) / len(rewards)
    total = table.log_probs.sum() * 0
    for (row, cells), reward in zip(known, rewards, strict=True):
        p = float(table.labels[row])
        up, down = -torch.log(_sigmoid(reward - delta)), -torch.log(_sigmoid(-(reward - delta)))
        total = total + _share(table, row, cells) * (p * up + (1 - p) * down)
    return total


def ift(table: Table, *, gamma: float = 0.95) -> Tensor:
    total, read, rows = table.log_probs.sum() * 0, table.others["blended"][0], 0
    for row in range(table.mask.shape[0]):
        cells = [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]
        rows += bool(cells)
        if not cells or not float(table.labels[row]) > 0.5:
            continue
        later = [sum(gamma ** (ahead - now) * -read[row, cells[ahead]] for ahead in range(now, len(cells))) for now in range(len(cells))]
        total = total + sum(c * -read[row, cell] for c, cell in zip(later, cells, strict=True)) / sum(later)
    return total / rows


def sft_f(table: Table, *, divergence: str = "chi_square", beta: float = 0.1) -> Tensor:
    total = table.log_probs.sum() * 0
    for row, cells in _units(table):
        p = float(table.labels[row])
        if math.isnan(p):
            continue
        r = beta * _ratio(table.log_probs, table.ref, row, cells)
        cost = {
            "total_variation": -r,
            "chi_square": r * r / 4 - r,
            "hellinger": -r / (1 + r) if float(r.detach()) > -0.5 else 1 - 4 * (r + 0.5),
            "kl": torch.exp(-r) - 1,
        }[divergence]
        total = total + _share(table, row, cells) * p * cost / beta
    return total


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "sft": [({}, sft)],
    "sft_f": [
        ({}, sft_f),
        ({"divergence": "total_variation", "beta": 0.7}, sft_f),
        ({"divergence": "hellinger", "beta": 0.9}, sft_f),
        ({"divergence": "kl", "beta": 0.4}, sft_f),
    ],
    "ift": [({}, ift), ({"gamma": 0.0}, ift)],
    "kto": [
        ({}, kto),
        ({"beta": 0.7, "desirable": 1.3, "undesirable": 0.8, "baseline": "batch"}, kto),
        ({"beta": 0.4, "baseline": "zero"}, kto),
    ],
    "bco": [({}, bco), ({"beta": 0.8}, bco)],
}
SATURATING = {
    "kto": "a sigmoid: what is far below the baseline is as bad as it can be (prospect theory's concavity)",
    "sft": "only good rows have a gradient",
    "sft_f": "only good rows have a gradient, and Hellinger's ends far above the reference",
    "ift": "only good rows have a gradient",
}
