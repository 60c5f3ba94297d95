"""Straight-line oracles of the methods that learn from lists: loops over lists, rows and cells, written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from tests.oracles.tables import Table


def _cells(table: Table, row: int) -> list[int]:
    return [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]


def _lists(table: Table) -> Iterator[list[int]]:
    """The rows of each list that have a reward and live steps; lists of one are left out."""
    rewards = table.rewards.tolist()
    for group in sorted(set(table.group.tolist())):
        known = [row for row in range(len(rewards)) if table.group[row] == group and not math.isnan(rewards[row])]
        if len(known) > 1:
            yield [row for row in known if _cells(table, row)]


def _rows(table: Table) -> int:
    return sum(bool(_cells(table, row)) for row in range(table.mask.shape[0]))


def _ratio(table: Table, row: int, cells: list[int]) -> Tensor:
    return sum((table.log_probs[row, cell] - table.ref[row, cell] for cell in cells), table.log_probs[row, 0] * 0)


def plackett_luce(table: Table, *, beta: float = 0.1) -> Tensor:
    total, rewards = table.log_probs.sum() * 0, table.rewards.tolist()
    for rows in _lists(table):
        for row in rows:
            cells = _cells(table, row)
            draws = [[cell] for cell in cells] if table.kind == "bound" else [cells]
            for draw in draws:
                total_exp = table.log_probs[row, 0] * 0
                for other in rows:
                    if rewards[other] <= rewards[row]:
                        theirs = draw if table.kind == "bound" else _cells(table, other)
                        if set(theirs) <= set(_cells(table, other)):  # a draw that the other row has too
                            total_exp = total_exp + (beta * _ratio(table, other, theirs)).exp()
                stage = total_exp.log() - beta * _ratio(table, row, draw)
                total = total + len(draw) / len(cells) * stage / _rows(table)
    return total


def _mean(table: Table, row: int) -> Tensor:
    cells = _cells(table, row)
    return sum((table.log_probs[row, cell] for cell in cells), table.log_probs[row, 0] * 0) / len(cells)


def _best(table: Table, rows: list[int]) -> list[int]:
    rewards = [float(table.rewards[row]) for row in rows]
    return [row for row, reward in zip(rows, rewards, strict=True) if reward == max(rewards) and min(rewards) < reward]


def rrhf(table: Table, *, sft: float = 1.0) -> Tensor:
    total = table.log_probs.sum() * 0
    for rows in _lists(table):
        for row in rows:
            for other in rows:
                gap = _mean(table, other) - _mean(table, row)
                if table.rewards[other] < table.rewards[row] and gap > 0:
                    total = total + gap / _rows(table)
        for row in _best(table, rows):
            total = total - sft * _mean(table, row) * len(_cells(table, row)) / _rows(table)
    return total


def pro(table: Table, *, sft: float = 0.05, temperature: bool = True) -> Tensor:
    total = table.log_probs.sum() * 0
    for rows in _lists(table):
        for row in rows:
            worse = [other for other in rows if table.rewards[other] < table.rewards[row]]
            gaps = [float(table.rewards[row] - table.rewards[other]) if temperature else 1.0 for other in worse]
            if worse:
                own = _mean(table, row) * max(gaps)
                rest = sum((_mean(table, other) * gap).exp() for other, gap in zip(worse, gaps, strict=True))
                total = total - (own.exp() / (own.exp() + rest)).log() / _rows(table)
        for row in _best(table, rows):
            total = total - sft * _mean(table, row) / _rows(table)
    return total


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "plackett_luce": [({}, plackett_luce), ({"beta": 0.9}, plackett_luce)],
    "rrhf": [({}, rrhf), ({"sft": 0.0}, rrhf)],
    "pro": [({}, pro), ({"sft": 0.0, "temperature": False}, pro), ({"sft": 0.7}, pro)],
}
SATURATING = {"rrhf": "a hinge on likelihoods alone: rows that are equally likely are at its corner"}
