"""Straight-line oracles of methods that compare whole rows: what one pair costs, written from the papers, one pair after another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.pairs import _cells, _known, dpo, expected, link_of, ratio, softplus
from tests.oracles.tables import Table


def _mean(table: Table, row: int, step: int | None = None) -> Tensor:
    return ratio(table, row, step, "per_step", None)


def _likelihood(table: Table, row: int, step: int | None, average: str) -> Tensor:
    """Minus the log-probability of a row, averaged. ``token``: as a share of all better rows' steps."""
    if average == "sequence":
        return -_mean(table, row, step)
    if average == "sum":
        return -ratio(table, row, step, "total", None)
    pairs = list(_known(table))
    steps = sum(p * len(_cells(table, first)) + (1 - p) * len(_cells(table, second)) for first, second, p in pairs)
    return -ratio(table, row, step, "total", None) * len(pairs) / steps


def cdpo(table: Table, *, smoothing: float = 0.1, **settings: Any) -> Tensor:
    return dpo(table, smoothing=smoothing, **settings)


def rdpo(table: Table, *, beta: float = 0.1, flips: float = 0.1, margin: str = "total") -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = beta * (ratio(table, better, step, margin) - ratio(table, worse, step, margin))
        return ((1 - flips) * softplus(-gap) - flips * softplus(gap)) / (1 - 2 * flips)

    return expected(table, cost)


def ipo(table: Table, **settings: Any) -> Tensor:
    return dpo(table, link="squared", **settings)


def hinge(table: Table, **settings: Any) -> Tensor:
    return dpo(table, link="hinge", **settings)


def slic(table: Table, *, delta: float = 1.0, likelihood: float = 1.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad = ratio(table, better, step, "total", None), ratio(table, worse, step, "total", None)
        return torch.clamp(delta - good + bad, min=0) - likelihood * good

    return expected(table, cost)


def f_dpo(table: Table, *, beta: float = 0.1, divergence: str = "js", alpha: float = 0.5) -> Tensor:
    def derivative(log_ratio: Tensor) -> Tensor:
        u = torch.exp(log_ratio)
        if divergence == "forward_kl":
            return 1 - 1 / u
        if divergence == "js":
            return torch.log(2 * u / (1 + u))
        if divergence == "alpha" and alpha != 1:
            return (u ** (alpha - 1) - 1) / (alpha - 1)
        return torch.log(u)

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        return softplus(-beta * (derivative(ratio(table, better, step)) - derivative(ratio(table, worse, step))))

    return expected(table, cost)


def exo(table: Table, *, beta: float = 0.1, smoothing: float = 1e-3) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        q = torch.sigmoid(beta * (ratio(table, better, step) - ratio(table, worse, step)))
        return q * torch.log(q / (1 - smoothing)) + (1 - q) * torch.log((1 - q) / smoothing)

    return expected(table, cost)


def _each(table: Table, beta: float, margin: str, cost: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    def of(better: int, worse: int, step: int | None) -> Tensor:
        return cost(beta * ratio(table, better, step, margin), beta * ratio(table, worse, step, margin))

    return expected(table, of)


def nca(table: Table, *, beta: float = 0.1, margin: str = "total") -> Tensor:
    log_sigmoid = lambda x: torch.log(torch.sigmoid(x))  # noqa: E731
    return _each(table, beta, margin, lambda w, r: -log_sigmoid(w) - 0.5 * log_sigmoid(-w) - 0.5 * log_sigmoid(-r))


def apo_zero(table: Table, *, beta: float = 0.1, margin: str = "total") -> Tensor:
    return _each(table, beta, margin, lambda w, r: 1 - torch.sigmoid(w) + torch.sigmoid(r))


def apo_down(table: Table, *, beta: float = 0.1, margin: str = "total") -> Tensor:
    return _each(table, beta, margin, lambda w, r: torch.sigmoid(w) + 1 - torch.sigmoid(w - r))


def sppo(table: Table, *, beta: float = 1e-3, half: bool = True, target: str = "pair") -> Tensor:
    total = table.log_probs.sum() * 0
    if target == "win_rate":

        def own_targets(better: int, worse: int, step: int | None) -> Tensor:
            squares = [(ratio(table, row, step) - (_rate(table, row) - 0.5) / beta) ** 2 for row in (better, worse)]
            return squares[0] + squares[1]

        known = torch.tensor([not bool(table.wins[pair].isnan().all(1).any()) for pair in table.pairs])
        compared = type(table)(**{**vars(table), "strength": torch.where(known, table.strength, torch.nan)})
        return expected(compared, own_targets) * (0.5 if half else 1.0)
    for turned in (False, True):
        # the paper's regression on P, and the constant by which the expected hard loss is above it

        def cost(better: int, worse: int, step: int | None, turned: bool = turned) -> Tensor:
            return (ratio(table, better, step) - 0.5 / beta) ** 2 if not turned else (ratio(table, worse, step) + 0.5 / beta) ** 2

        total = total + expected(table, cost) * (0.5 if half else 1.0)
    return total


def _rate(table: Table, row: int) -> float:
    """How often a row beats the others that it was compared with."""
    chances = [chance for chance in table.wins[row].tolist() if not math.isnan(chance)]
    return sum(chances) / len(chances)


def discopop(table: Table, *, beta: float = 0.05, tau: float = 0.05) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        z = beta * (ratio(table, better, step) - ratio(table, worse, step))
        share = torch.sigmoid(z / tau)
        return (1 - share) * -torch.log(torch.sigmoid(z)) + share * torch.exp(-z)

    return expected(table, cost)


def simpo(table: Table, *, beta: float = 2.0, gamma: float = 1.0, likelihood: float = 0.0, smoothing: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad = _mean(table, better, step), _mean(table, worse, step)
        right, wrong = softplus(gamma - beta * (good - bad)), softplus(gamma - beta * (bad - good))
        return (1 - smoothing) * right + smoothing * wrong - likelihood * good

    return expected(table, cost)


def cpo(table: Table, *, beta: float = 0.1, likelihood: float = 1.0, average: str = "sequence", smoothing: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = ratio(table, better, step, "total", None) - ratio(table, worse, step, "total", None)
        smooth = (1 - smoothing) * softplus(-beta * gap) + smoothing * softplus(beta * gap)
        return smooth + likelihood * _likelihood(table, better, step, average)

    return expected(table, cost)


def orpo(table: Table, *, beta: float = 0.1, average: str = "sequence") -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        chances = [torch.exp(_mean(table, row, step)) for row in (better, worse)]
        odds = [chance / (1 - chance) for chance in chances]
        return _likelihood(table, better, step, average) - beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))

    return expected(table, cost)


def alphapo(table: Table, *, beta: float = 2.0, gamma: float = 1.0, alpha: float = 0.25) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        rewards = [(1 - torch.exp(_mean(table, row, step)) ** -alpha) / alpha for row in (better, worse)]
        return softplus(gamma - beta * (rewards[0] - rewards[1]))

    return expected(table, cost)


def rpo(table: Table, *, beta: float = 0.1, likelihood: float = 1.0, average: str = "sequence") -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = ratio(table, better, step) - ratio(table, worse, step)
        return link_of(gap, "logistic", beta) + likelihood * _likelihood(table, better, step, average)

    return expected(table, cost)


def _mean_reward(table: Table, beta: float) -> float:
    """The mean of beta times the log-ratio of all rows of known pairs; of a bound, of all draws that both rows have."""
    terms = []
    for first, second, _ in _known(table):
        shared = [None] if table.kind != "bound" else sorted(set(_cells(table, first)) & set(_cells(table, second)))
        terms += [beta * ratio(table, row, step).item() for row in (first, second) for step in shared]
    return sum(terms) / len(terms)


def bco_pair(table: Table, *, beta: float = 0.1, shift: str = "running") -> Tensor:
    delta = _mean_reward(table, beta) if shift == "running" else 0.0

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad = beta * ratio(table, better, step) - delta, beta * ratio(table, worse, step) - delta
        return -torch.log(torch.sigmoid(good)) - torch.log(1 - torch.sigmoid(bad))

    return expected(table, cost)


def mpo(
    table: Table, *, preference: float = 0.8, quality: float = 0.2, likelihood: float = 1.0, beta: float = 0.1, shift: str = "running",
    average: str = "sequence",
) -> Tensor:  # fmt: skip
    return (
        preference * dpo(table, beta=beta)
        + quality * bco_pair(table, beta=beta, shift=shift)
        + likelihood * expected(table, lambda better, worse, step: _likelihood(table, better, step, average))
    )


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "cdpo": [({}, cdpo), ({"beta": 0.7, "smoothing": 0.2, "margin": "per_step"}, cdpo)],
    "rdpo": [({}, rdpo), ({"beta": 0.7, "flips": 0.3, "margin": "per_step"}, rdpo)],
    "ipo": [({}, ipo), ({"beta": 0.7, "margin": "per_step", "smoothing": 0.1}, ipo)],
    "hinge": [({}, hinge), ({"beta": 2.0, "margin": "per_scalar"}, hinge)],
    "slic": [({}, slic), ({"delta": 0.3, "likelihood": 0.2}, slic)],
    "f_dpo": [
        ({}, f_dpo),
        ({"beta": 0.5, "divergence": "forward_kl"}, f_dpo),
        ({"divergence": "reverse_kl"}, f_dpo),
        ({"divergence": "alpha", "alpha": 0.3}, f_dpo),
        ({"divergence": "alpha", "alpha": 1.0}, f_dpo),
    ],
    "exo": [({}, exo), ({"beta": 0.7, "smoothing": 0.1}, exo)],
    "nca": [({}, nca), ({"beta": 0.7, "margin": "per_step"}, nca)],
    "apo_zero": [({}, apo_zero), ({"beta": 0.7, "margin": "per_step"}, apo_zero)],
    "apo_down": [({}, apo_down), ({"beta": 0.7, "margin": "per_step"}, apo_down)],
    "sppo": [({}, sppo), ({"beta": 0.2, "half": False}, sppo), ({"beta": 0.3, "target": "win_rate"}, sppo)],
    "discopop": [({}, discopop), ({"beta": 0.7, "tau": 0.5}, discopop)],
    "simpo": [({}, simpo), ({"beta": 3.0, "gamma": 0.5, "likelihood": 0.3, "smoothing": 0.1}, simpo)],
    "cpo": [
        ({}, cpo),
        ({"beta": 0.7, "likelihood": 0.3, "average": "token"}, cpo),
        ({"average": "sum", "smoothing": 0.1}, cpo),
    ],
    "orpo": [({}, orpo), ({"beta": 0.7, "average": "token"}, orpo)],
    "alphapo": [({}, alphapo), ({"beta": 1.0, "gamma": 0.3, "alpha": -0.5}, alphapo)],
    "rpo": [
        ({}, rpo),
        ({"beta": 0.7, "likelihood": 0.3, "average": "token"}, rpo),
        ({"average": "sum"}, rpo),
    ],
    "bco_pair": [({}, bco_pair), ({"beta": 0.7, "shift": "none"}, bco_pair)],
    "mpo": [
        ({}, mpo),
        ({"preference": 0.5, "quality": 0.7, "likelihood": 0.1, "beta": 0.7, "shift": "none", "average": "token"}, mpo),
    ],
}

SATURATING: dict[str, str] = {
    "discopop": "its blend rises with the margin between about 0 and tau: the formula was found by a search, and is not monotone",
    "apo_zero": "its sigmoids are flat far from the reference",
    "apo_down": "its sigmoids are flat far from the reference",
}
