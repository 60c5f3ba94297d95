"""Straight-line oracles of the methods that learn from pairs: loops over pairs and cells, written from the papers and public code."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.oracles.tables import Table


def _cells(table: Table, row: int) -> list[int]:
    return [step for step in range(table.mask.shape[1]) if bool(table.mask[row, step])]


def _known(table: Table) -> Iterator[tuple[int, int, float]]:
    """(first row, second row, strength) of the pairs that say something and have steps in both rows."""
    for (first, second), strength in zip(table.pairs.tolist(), table.strength.tolist(), strict=True):
        if not math.isnan(strength) and _cells(table, first) and _cells(table, second):
            yield first, second, strength


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), the larger exponential taken out."""
    return x + torch.log1p(torch.exp(-x)) if x > 0 else torch.log1p(torch.exp(x))


def link_of(margin: Tensor, link: str, beta: float) -> Tensor:
    if link == "logistic":
        return softplus(-beta * margin)
    if link == "hinge":
        return 1 - beta * margin if beta * margin < 1 else margin * 0
    return (margin - 0.5 / beta) ** 2


def _rows(table: Table) -> int:
    return sum(bool(_cells(table, row)) for row in range(table.mask.shape[0]))


def ratio(table: Table, row: int, step: int | None = None, over: str = "total", ref: str | None = "ref") -> Tensor:
    """What a row is worth: summed over its steps, or at one noise draw; against a reference or not."""
    steps = _cells(table, row) if step is None else [step]
    total = table.log_probs[row, 0] * 0
    for number in steps:
        total = total + table.log_probs[row, number] - (0.0 if ref is None else getattr(table, ref)[row, number])
    return total / {"total": 1, "per_step": len(steps), "per_scalar": table.event_size}[over]


def expected(table: Table, cost: Callable[[int, int, int | None], Tensor], mix: Callable[[float], float] = lambda p: p) -> Tensor:
    """Mean over rows of what their pair costs: with probability p its first row is the better one, else its second.

    cost: (better row, worse row, noise draw or None) -> 0-d. Draws of a bound (dimensions of a score) that both rows have are pairs.
    """
    total = table.log_probs.sum() * 0
    for first, second, strength in _known(table):
        p = mix(strength) if strength >= 0.5 else 1 - mix(1 - strength)
        if table.kind not in ("bound", "score"):
            total = total + 2 * (p * cost(first, second, None) + (1 - p) * cost(second, first, None)) / _rows(table)
            continue
        for step in set(_cells(table, first)) & set(_cells(table, second)):
            share = 1 / len(_cells(table, first)) + 1 / len(_cells(table, second))
            total = total + share * (p * cost(first, second, step) + (1 - p) * cost(second, first, step)) / _rows(table)
    return total


def _smooth(smoothing: float) -> Callable[[float], float]:
    return lambda p: p * (1 - smoothing) + (1 - p) * smoothing


def dpo(table: Table, *, beta: float = 0.1, margin: str = "total", link: str = "logistic", smoothing: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        return link_of(ratio(table, better, step, margin) - ratio(table, worse, step, margin), link, beta)

    return expected(table, cost, _smooth(smoothing))


def _squared_error(table: Table, row: int, step: int, error: str) -> tuple[Tensor, Tensor]:
    """Of the policy and of the reference, to the target of the step."""
    assert table.mean is not None and table.mean_ref is not None and table.target is not None
    ours, theirs = (table.mean - table.target)[row, step] ** 2, (table.mean_ref - table.target)[row, step] ** 2
    return (ours.mean(), theirs.mean()) if error == "mean" else (ours.sum(), theirs.sum())


def diffusion_dpo(
    table: Table, *, beta: float = 5000.0, error: str = "mean", half: bool = True, link: str = "logistic", smoothing: float = 0.0,
    times: str = "constant",
) -> Tensor:  # fmt: skip
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        assert step is not None
        (model_w, ref_w), (model_l, ref_l) = (_squared_error(table, row, step, error) for row in (better, worse))
        inside = -(0.5 if half else 1.0) * ((model_w - ref_w) - (model_l - ref_l))
        if times == "noise":
            inside = inside * (1 - float(table.noise[better, step])) ** 2
        return link_of(inside, link, beta)

    return expected(table, cost, _smooth(smoothing))


def flow_dpo(table: Table, *, beta: float = 2000.0, **settings: Any) -> Tensor:
    return diffusion_dpo(table, beta=beta, **settings)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "dpo": [
        ({}, dpo),
        ({"beta": 0.5, "margin": "per_step", "smoothing": 0.1}, dpo),
        ({"beta": 2.0, "margin": "per_scalar", "link": "hinge"}, dpo),
        ({"beta": 0.05, "link": "squared", "smoothing": 0.2}, dpo),
    ],
}
