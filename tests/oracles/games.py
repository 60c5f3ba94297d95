"""Straight-line oracles of the methods that play against earlier policies: loops over pairs and cells, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.oracles.tables import DRAWN, Table


def _cells(table: Table, row: int) -> list[int]:
    return [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]


def _rows(table: Table) -> int:
    return sum(bool(_cells(table, row)) for row in range(table.mask.shape[0]))


def _comparisons(table: Table) -> Iterator[tuple[int, int, float, list[int], list[int], float]]:
    """(first, second, strength, cells of each, share): a pair, or for a bound every draw that both rows have."""
    for (first, second), strength in zip(table.pairs.tolist(), table.strength.tolist(), strict=True):
        ours, theirs = _cells(table, first), _cells(table, second)
        if math.isnan(strength) or not ours or not theirs:
            continue
        if table.kind == "bound":
            for cell in sorted(set(ours) & set(theirs)):
                yield first, second, strength, [cell], [cell], (1 / len(ours) + 1 / len(theirs)) / _rows(table)
        else:
            yield first, second, strength, ours, theirs, 2 / _rows(table)


def _sum(values: Tensor, row: int, cells: list[int]) -> Tensor:
    return sum((values[row, cell] for cell in cells), torch.zeros((), dtype=torch.float64))


def _ahead(table: Table, values: Tensor, first: int, second: int, ours: list[int], theirs: list[int]) -> Tensor:
    return _sum(values, first, ours) - _sum(values, second, theirs)


def mnpo(table: Table, *, eta: float = 0.0075, shares: dict[str, float] | None = None, margin: str = "total") -> Tensor:
    total, tables = table.log_probs.sum() * 0, {"ref": table.ref, "previous": table.previous, "before": table.before}
    shares = {"ref": 1 / 3, "previous": 1 / 3, "before": 1 / 3} if shares is None else shares
    for first, second, strength, ours, theirs, share in _comparisons(table):
        one, two = ({"total": 1, "per_step": len(cells), "per_scalar": table.event_size}[margin] for cells in (ours, theirs))
        gap = _sum(table.log_probs, first, ours) / one - _sum(table.log_probs, second, theirs) / two
        for name, weight in shares.items():
            gap = gap - weight * (_sum(tables[name], first, ours) / one - _sum(tables[name], second, theirs) / two)
        aim = 1 / (2 * eta)
        total = total + share * (strength * (gap - aim) ** 2 + (1 - strength) * (-gap - aim) ** 2)
    return total


def inpo(table: Table, *, eta: float = 0.005, ratio: float = 1 / 3) -> Tensor:
    return mnpo(table, eta=eta, shares={"ref": ratio, "previous": 1 - ratio})


def _softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(x)) if x < 0 else x + torch.log1p(torch.exp(-x))


def dno(table: Table, *, beta: float = 0.1, gap: float = 0.0, labels: str = "pair") -> Tensor:
    total = table.log_probs.sum() * 0
    if labels == "win_rates":
        rates = [[chance for chance in row if not math.isnan(chance)] for row in table.wins.tolist()]
        of = [sum(row) / len(row) if row else math.nan for row in rates]
        sure = torch.tensor([1 / (1 + math.exp(of[second] - of[first])) for first, second in table.pairs.tolist()], dtype=torch.float64)
        table = type(table)(**{**vars(table), "strength": torch.where(table.strength.isnan(), math.nan, sure)})
    for first, second, strength, ours, theirs, share in _comparisons(table):
        apart = abs(float(table.rewards[first]) - float(table.rewards[second]))
        if not math.isnan(apart) and apart < gap:
            continue
        margin = _ahead(table, table.log_probs - table.previous, first, second, ours, theirs)
        total = total + share * (strength * _softplus(-beta * margin) + (1 - strength) * _softplus(beta * margin))
    return total


def irepo(table: Table, *, beta: float = 0.1, eps: float = 0.01) -> Tensor:
    total = table.log_probs.sum() * 0
    for first, second, strength, ours, theirs, share in _comparisons(table):
        p = min(max(strength, eps), 1 - eps)
        margin = _ahead(table, table.log_probs - table.ref, first, second, ours, theirs)
        total = total + share * (beta * margin - math.log(p / (1 - p))) ** 2
    return total


def gpo(table: Table, *, beta: float = 1e-3) -> Tensor:
    total, scores = table.log_probs.sum() * 0, []
    for row in range(len(table.rewards)):
        odds = []
        for other in range(len(table.rewards)):
            p = float(table.wins[row, other])
            if not math.isnan(p):
                p = min(max(p, 1e-3), 1 - 1e-3)
                odds.append(math.log(p / (1 - p)))
        scores.append(sum(odds) / len(odds) if odds else math.nan)
    for first, second, _, ours, theirs, share in _comparisons(table):
        if not math.isnan(scores[first] + scores[second]):
            one = _sum(table.log_probs - table.ref, first, ours) - scores[first] / beta
            two = _sum(table.log_probs - table.ref, second, theirs) - scores[second] / beta
            total = total + share * (one**2 + two**2) / 2
    return total


def online_dpo(table: Table, *, beta: float = 0.1, link: str = "logistic") -> Tensor:
    total = table.log_probs.sum() * 0
    links: dict[str, Callable[[Tensor], Tensor]] = {
        "logistic": lambda m: _softplus(-beta * m),
        "hinge": lambda m: torch.clamp(1 - beta * m, min=0),
        "squared": lambda m: (m - 1 / (2 * beta)) ** 2,
    }
    for first, second, strength, ours, theirs, share in _comparisons(table):
        margin = _ahead(table, table.log_probs - table.ref, first, second, ours, theirs)
        total = total + share * (strength * links[link](margin) + (1 - strength) * links[link](-margin))
    return total


def _with_bonus(table: Table, beta: float, weight: float, chosen: list[int], ref: bool) -> Tensor:
    """DPO's mean over pairs, and ``weight`` times the mean over the chosen rows, each by its own count among the rows that count."""
    known = [row for pair, p in zip(table.pairs.tolist(), table.strength.tolist(), strict=True) if not math.isnan(p) for row in pair]
    chosen = [row for row in chosen if not math.isnan(float(table.rewards[row]))]
    counted = len({*known, *chosen})
    total = counted / len(known) * online_dpo(table, beta=beta)
    for row in chosen:
        own = table.log_probs - table.ref if ref else table.log_probs
        total = total + weight * counted / len(chosen) * _sum(own, row, _cells(table, row)) / _rows(table)
    return total


def xpo(table: Table, *, beta: float = 0.1, alpha: float = 1e-5) -> Tensor:
    return _with_bonus(table, beta, alpha, DRAWN["ref"], ref=False)


def selm(table: Table, *, beta: float = 0.01, alpha: float = 1e-3) -> Tensor:
    return _with_bonus(table, beta, alpha * beta, DRAWN["ref"], ref=True)


def vpo(table: Table, *, beta: float = 0.1, alpha: float = 0.01, value: str = "optimism") -> Tensor:
    if value == "optimism":
        return _with_bonus(table, beta, alpha * beta, DRAWN["ref"], ref=True)
    better = []
    for (first, second), p in zip(table.pairs.tolist(), table.strength.tolist(), strict=True):
        if p != 0.5 and not math.isnan(p):
            better.append(first if p > 0.5 else second)
    return _with_bonus(table, beta, -alpha * beta, better, ref=True)


def accelerated_po(table: Table, *, beta: float = 0.1, momentum: float = 0.3, every: int = 10) -> Tensor:
    return dno(table, beta=beta)  # the momentum is in how ``previous`` moves


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "mnpo": [
        ({}, mnpo),
        ({"eta": 0.3, "shares": {"ref": 0.25, "previous": 0.75}}, mnpo),
        ({"shares": {"previous": 1.0}, "margin": "per_step"}, mnpo),
    ],
    "inpo": [({}, inpo), ({"eta": 0.2, "ratio": 0.6}, inpo)],
    "dno": [({}, dno), ({"beta": 0.7, "gap": 0.4}, dno), ({"labels": "win_rates"}, dno)],
    "irepo": [({}, irepo), ({"beta": 0.5, "eps": 0.2}, irepo)],
    "gpo": [({"beta": 0.5}, gpo), ({}, gpo)],
    "accelerated_po": [({}, accelerated_po), ({"beta": 0.7, "momentum": 0.0, "every": 3}, accelerated_po)],
    "xpo": [({}, xpo), ({"beta": 0.7, "alpha": 0.3}, xpo)],
    "selm": [({}, selm), ({"beta": 0.7, "alpha": 0.3}, selm)],
    "vpo": [({}, vpo), ({"beta": 0.7, "alpha": 0.3, "value": "pessimism"}, vpo)],
    "online_dpo": [({}, online_dpo), ({"beta": 0.4, "link": "hinge"}, online_dpo), ({"link": "squared"}, online_dpo)],
}
