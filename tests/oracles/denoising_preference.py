"""Straight-line oracles of preferences through denoising errors: loops over rows and draws, written from the papers and public code."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.pairs import _cells, _known, diffusion_dpo, expected, flow_dpo, link_of, ratio, softplus
from tests.oracles.tables import Table

UTILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "kahneman_tversky": lambda x: 1 / (1 + torch.exp(-x)),
    "loss_averse": lambda x: -softplus(-x),
    "risk_seeking": softplus,
}


def _error(table: Table, of: Tensor | None, row: int, step: int, error: str, half: bool) -> Tensor:
    square = (of[row, step] - table.target[row, step]) ** 2  # type: ignore[index]
    return (0.5 if half else 1.0) * (square.mean() if error == "mean" else square.sum())


def _gain(table: Table, row: int, step: int, error: str, half: bool) -> Tensor:
    """``l^ref - l``."""
    return _error(table, table.mean_ref, row, step, error, half) - _error(table, table.mean, row, step, error, half)


def _scaled(table: Table, error: str, half: bool) -> float:
    """What turns nats of a bound, which are halves of sums, into these errors."""
    return (1.0 if half else 2.0) / (table.event_size if error == "mean" else 1)


def _under(table: Table, row: int, step: int) -> Tensor:
    """The gain under the other prompt, in nats."""
    policy, reference = table.others["mismatched"]
    return policy[row, step] - reference[row, step]


def _draws(table: Table, rows: list[int]) -> list[tuple[int, int]]:
    return [(row, step) for row in rows for step in _cells(table, row)]


def _mean_over_rows(table: Table, cost: dict[tuple[int, int], Tensor]) -> Tensor:
    live = [row for row in range(table.mask.shape[0]) if _cells(table, row)]
    total = table.log_probs.sum() * 0
    for (row, _), value in cost.items():
        total = total + value / len(_cells(table, row)) / len(live)
    return total


def diffusion_kto(
    table: Table, *, utility: str = "kahneman_tversky", beta: float = 1000.0, desirable: float = 1.0, undesirable: float = 1.0,
    baseline: str = "batch", error: str = "mean", half: bool = False,
) -> Tensor:  # fmt: skip
    draws = _draws(table, [row for row, label in enumerate(table.labels.tolist()) if not math.isnan(label)])
    if baseline == "mismatched":
        gains = [float(_under(table, row, step).detach()) * _scaled(table, error, half) for row, step in draws]
    else:
        gains = [float(_gain(table, row, step, error, half).detach()) for row, step in draws]
    z, u = 0.0 if baseline == "zero" else max(0.0, sum(gains) / len(gains)), UTILITIES[utility]
    cost = {}
    for row, step in draws:
        p, x = float(table.labels[row]), beta * (_gain(table, row, step, error, half) - z)
        cost[row, step] = p * desirable * (1 - u(x)) + (1 - p) * undesirable * (1 - u(-x))
    return _mean_over_rows(table, cost)


def _good(table: Table) -> list[int]:
    return [row for row, label in enumerate(table.labels.tolist()) if label > 0.5]


def text_dpo(table: Table, *, beta: float = 5000.0, error: str = "mean", half: bool = True) -> Tensor:
    scale = _scaled(table, error, half)
    return _mean_over_rows(table, {
        (row, step): softplus(-beta * (_gain(table, row, step, error, half) - scale * _under(table, row, step)))
        for row, step in _draws(table, _good(table))
    })  # fmt: skip


def text_kto(
    table: Table, *, utility: str = "kahneman_tversky", beta: float = 1000.0, undesirable: float = 1.0, baseline: str = "batch",
    error: str = "mean", half: bool = False,
) -> Tensor:  # fmt: skip
    draws, scale, u, cost = _draws(table, _good(table)), _scaled(table, error, half), UTILITIES[utility], {}
    gains = [float(_gain(table, row, step, error, half).detach()) for row, step in draws]
    z = max(0.0, sum(gains) / len(gains)) if baseline == "batch" else 0.0
    for row, step in draws:
        own, other = _gain(table, row, step, error, half), scale * _under(table, row, step)
        cost[row, step] = float(table.labels[row]) * (1 - u(beta * (own - z)) + undesirable * (1 - u(beta * (z - other))))
    return _mean_over_rows(table, cost)


def seppo(
    table: Table, *, beta: float = 5000.0, anchor: bool = True, opponent: str = "random", every: int = 50, error: str = "mean",
    half: bool = True,
) -> Tensor:  # fmt: skip
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        assert step is not None
        d_w, d_r = (
            _error(table, table.mean, row, step, error, half) - _error(table, table.mean_previous, row, step, error, half)
            for row in (better, worse)
        )
        s = -1 if anchor and d_w > 0 else 1
        return softplus(beta * (d_w - s * d_r))

    return expected(table, cost)


def subject_rpo(table: Table, *, beta: float = 1.0, similarity: float = 1.0, error: str = "mean", half: bool = False) -> Tensor:
    good = _good(table)

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        assert step is not None
        given = sum((_error(table, table.mean, row, step, error, half) for row in (better, worse) if row in good), table.leaf.sum() * 0)
        ahead = _gain(table, better, step, error, half) - _gain(table, worse, step, error, half)
        return similarity * given + softplus(-beta * ahead)

    return expected(table, cost)


def _margins(table: Table, margin: str) -> list[float]:
    """Of known pairs (draws of a bound apart), each times ``2 p - 1``."""
    found = []
    for first, second, p in _known(table):
        steps = set(_cells(table, first)) & set(_cells(table, second)) if table.kind == "bound" else [None]
        found += [(2 * p - 1) * float((ratio(table, first, s, margin) - ratio(table, second, s, margin)).detach()) for s in steps]
    return found


def auto_beta_dpo(table: Table, *, weight: float = 0.2, decay: float = 0.99, low: float = 1e-3, high: float = 1.0) -> Tensor:
    margins = _margins(table, "total")
    beta = min(max(math.log(1 / weight - 1) * len(margins) / sum(map(abs, margins)), low), high)  # the first update: no average yet
    return expected(table, lambda better, worse, step: link_of(ratio(table, better, step) - ratio(table, worse, step), "logistic", beta))


def beta_dpo(
    table: Table, *, beta: float = 0.1, alpha: float = 0.6, decay: float = 0.9, kept: float = 0.8, margin: str = "total"
) -> Tensor:
    """Of a first update, where the moving average is its own mean; ``tests/objectives/test_betas.py`` has the second."""
    margins = dict[tuple[int, int], list[float]]()
    for first, second, strength in _known(table):
        both = set(_cells(table, first)) & set(_cells(table, second))
        gaps = [
            ratio(table, first, step, margin) - ratio(table, second, step, margin) for step in (both if table.kind == "bound" else [None])
        ]
        margins[first, second] = [beta * (2 * strength - 1) * float(gap) for gap in gaps]
    usual = statistics.mean(value for values in margins.values() for value in values)
    order = sorted(margins, key=lambda pair: abs(statistics.mean(margins[pair]) - usual))
    chosen = order[: max(1, math.floor(kept * len(order)))]
    ahead = statistics.mean(value for pair in chosen for value in margins[pair]) - usual

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        counts = len(order) / len(chosen) if (better, worse) in chosen or (worse, better) in chosen else 0.0
        gap = ratio(table, better, step, margin) - ratio(table, worse, step, margin)
        return counts * link_of(gap, "logistic", beta * max(0.01, 1 + alpha * ahead))

    return expected(table, cost)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "diffusion_dpo": [
        ({}, diffusion_dpo),
        ({"beta": 2.0}, diffusion_dpo),
        ({"beta": 1.0, "half": False, "smoothing": 0.1}, diffusion_dpo),
        ({"beta": 0.3, "error": "sum", "link": "hinge"}, diffusion_dpo),
        ({"beta": 0.5, "half": False, "link": "squared"}, diffusion_dpo),
    ],
    "flow_dpo": [
        ({"beta": 1.5}, flow_dpo),
        ({"beta": 3.0, "times": "noise", "half": False}, flow_dpo),
        ({"beta": 0.2, "error": "sum", "smoothing": 0.3}, flow_dpo),
    ],
    "diffusion_kto": [
        ({"beta": 2.0}, diffusion_kto),
        ({"beta": 0.7, "utility": "loss_averse", "baseline": "mismatched", "half": True, "desirable": 1.3}, diffusion_kto),
        ({"beta": 0.2, "utility": "risk_seeking", "baseline": "zero", "error": "sum", "undesirable": 0.6}, diffusion_kto),
    ],
    "text_dpo": [({"beta": 3.0}, text_dpo), ({"beta": 0.3, "error": "sum", "half": False}, text_dpo)],
    "text_kto": [
        ({"beta": 2.0}, text_kto),
        ({"beta": 0.3, "utility": "loss_averse", "undesirable": 0.6, "baseline": "zero", "error": "sum", "half": True}, text_kto),
    ],
    "seppo": [
        ({"beta": 3.0}, seppo),
        ({"beta": 0.3, "anchor": False, "opponent": "latest", "every": 7, "error": "sum", "half": False}, seppo),
        ({"beta": 0.3, "opponent": "first", "error": "sum"}, seppo),
    ],
    "subject_rpo": [
        ({}, subject_rpo),
        ({"beta": 0.4, "similarity": 0.2, "error": "sum", "half": True}, subject_rpo),
    ],
    "auto_beta_dpo": [
        ({}, auto_beta_dpo),
        ({"weight": 0.4, "decay": 0.5, "low": 0.2, "high": 0.3}, auto_beta_dpo),
    ],
    "beta_dpo": [
        ({}, beta_dpo),
        ({"beta": 0.5, "alpha": 0.2, "decay": 0.5, "kept": 1.0, "margin": "per_step"}, beta_dpo),
        ({"kept": 0.3}, beta_dpo),
    ],
}
SATURATING = {
    "diffusion_kto": "a sigmoid: what is far below the baseline is as bad as it can be (prospect theory's concavity)",
    "text_dpo": "only good rows have a gradient",
    "text_kto": "only good rows have a gradient",
    "seppo": "of an earlier checkpoint, and not of ref",
}
