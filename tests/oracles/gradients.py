"""Straight-line oracles of policy gradients without a critic: loops over cells, from the papers' formulas."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.policy_gradient import _cells, _compared, _kl, _known, _ppo, _rows, _z_scores, _zero
from tests.oracles.tables import DRAWN, Table


def _constant(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _gap(table: Table, row: int, step: int) -> Tensor:
    return table.log_probs[row, step] - table.old[row, step]


def _mean_gap(table: Table, row: int) -> Tensor:
    return sum((_gap(table, row, step) for step in _cells(table, row)), _zero(table)) / len(_cells(table, row))


def _scores(table: Table, unbiased: bool = True, eps: float = 1e-4, std: str = "group") -> list[float]:
    return _z_scores(table, table.rewards.tolist(), unbiased, eps, std)


def _every_cell(table: Table, cell: Callable[[int, int], Tensor]) -> Tensor:
    """Mean over all live cells."""
    cells = [(row, step) for row in _rows(table) for step in _cells(table, row)]
    return sum((cell(row, step) for row, step in cells), _zero(table)) / len(cells)


def _every_row(table: Table, cell: Callable[[int, int], Tensor], length: bool = True) -> Tensor:
    """Mean over rows of the mean, or of the sum, over a row's live cells."""
    total = _zero(table)
    for row in _rows(table):
        inside = sum((cell(row, step) for step in _cells(table, row)), _zero(table))
        total = total + (inside / len(_cells(table, row)) if length else inside)
    return total / len(_rows(table))


def reinforce(table: Table, *, baseline: str = "batch", beta: float = 0.0, kl: str = "k2") -> Tensor:
    rewards = table.rewards.tolist()
    known = [reward for reward in rewards if not math.isnan(reward)]
    ahead = [0.0 if math.isnan(reward) else reward for reward in rewards]
    if baseline == "batch":
        ahead = [0.0 if math.isnan(reward) else reward - sum(known) / len(known) for reward in rewards]
    if baseline == "group":
        ahead = _scores(table, std="none")
    return _every_row(table, lambda i, t: -ahead[i] * table.log_probs[i, t] + beta * _kl(table, i, t, kl), length=False)


def _to_go(earned: list[float], gamma: float) -> list[float]:
    return [sum(gamma ** (later - now) * earned[later] for later in range(now, len(earned))) for now in range(len(earned))]


def _whiten(table: Table, values: dict[tuple[int, int], float], eps: float) -> dict[tuple[int, int], float]:
    spread = math.sqrt(statistics.variance(values.values()) + eps)
    middle = statistics.mean(values.values())
    return {key: (value - middle) / spread for key, value in values.items()}


def _known_rows(table: Table) -> list[int]:
    return [row for row in _rows(table) if not math.isnan(float(table.rewards[row]))]


def _paid(table: Table, row: int, step: int) -> float:
    return float(table.old[row, step] - table.ref[row, step])


def _clipped(table: Table, ahead: dict[tuple[int, int], float], clip: float, dual: float | None) -> Tensor:
    def cell(row: int, step: int) -> Tensor:
        score = ahead.get((row, step), 0.0)
        value = _ppo(_gap(table, row, step), score, clip, clip)
        return _constant(-dual * score) if dual is not None and score < 0 and value > -dual * score else value

    return _every_cell(table, cell)


def reinforce_plus_plus(
    table: Table, *, clip: float = 0.2, dual: float | None = None, beta: float = 0.01, gamma: float = 1.0, eps: float = 1e-8
) -> Tensor:
    ahead: dict[tuple[int, int], float] = {}
    for row in _known_rows(table):
        cells = _cells(table, row)
        earned = [-beta * _paid(table, row, step) for step in cells]
        earned[-1] += float(table.rewards[row])
        ahead.update({(row, step): value for step, value in zip(cells, _to_go(earned, gamma), strict=True)})
    return _clipped(table, _whiten(table, ahead, eps), clip, dual)


def reinforce_plus_plus_baseline(
    table: Table, *, clip: float = 0.2, dual: float | None = None, beta: float = 0.01, kl: str = "k2", eps: float = 1e-8
) -> Tensor:
    scores = _scores(table, std="none")
    ahead = {(row, step): scores[row] for row in _known_rows(table) for step in _cells(table, row)}
    return _clipped(table, _whiten(table, ahead, eps), clip, dual) + beta * _every_cell(table, lambda i, t: _kl(table, i, t, kl))


def remax(table: Table, *, beta: float = 0.0, gamma: float = 1.0, largest: float | None = None) -> Tensor:
    bound, total = math.inf if largest is None else largest, _zero(table)
    for row in _rows(table):
        greedy = [other for other in _known(table, table.rewards.tolist(), row) if other in DRAWN["greedy"]]
        if not greedy or row not in _known_rows(table) or row in DRAWN["greedy"]:
            continue
        baseline = statistics.mean(float(table.rewards[other]) for other in greedy)
        cells = _cells(table, row)
        price = _to_go([_paid(table, row, step) for step in cells], gamma)
        for step, later in zip(cells, price, strict=True):
            score = float(table.rewards[row]) - baseline - beta * later
            total = total - max(-bound, min(bound, score)) * table.log_probs[row, step]
    return total / len(_rows(table))


def gspo(
    table: Table, *, low: float = 3e-4, high: float = 4e-4, form: str = "sequence", dual: float | None = None, beta: float = 0.0,
    kl: str = "k3", unbiased: bool = True, eps: float = 1e-4,
) -> Tensor:  # fmt: skip
    scores = _scores(table, unbiased, eps)

    def cell(row: int, step: int) -> Tensor:
        mean = _mean_gap(table, row)
        if form == "token":
            mean = mean.detach() + table.log_probs[row, step] - table.log_probs[row, step].detach()
        value = _ppo(mean, scores[row], low, high)
        if dual is not None and scores[row] < 0 and value > -dual * scores[row]:
            value = _constant(-dual * scores[row])
        return value + beta * _kl(table, row, step, kl)

    return _every_row(table, cell)


def luspo(
    table: Table, *, low: float = 2e-3, high: float = 2.5e-3, beta: float = 0.0, kl: str = "k3", unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    scores, total = _scores(table, unbiased, eps), _zero(table)
    for row in _rows(table):
        total = total + len(_cells(table, row)) * _ppo(_mean_gap(table, row), scores[row], low, high)
        total = total + beta * sum((_kl(table, row, step, kl) for step in _cells(table, row)), _zero(table))
    return total / len(_rows(table))


def cispo(
    table: Table,
    *,
    smallest: float = 0.0,
    largest: float = 5.0,
    beta: float = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    scores = _scores(table, unbiased, eps)

    def cell(row: int, step: int) -> Tensor:
        weight = min(max(math.exp(float(_gap(table, row, step))), smallest), largest)
        return -weight * scores[row] * table.log_probs[row, step] + beta * _kl(table, row, step, kl)

    return _every_cell(table, cell)


def sapo(
    table: Table,
    *,
    positive: float = 1.0,
    negative: float = 1.05,
    beta: float = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Tensor:
    scores = _scores(table, unbiased, eps)

    def cell(row: int, step: int) -> Tensor:
        tau = positive if scores[row] > 0 else negative
        gate = 4 / tau / (1 + torch.exp(-tau * (torch.exp(_gap(table, row, step)) - 1)))
        return -gate * scores[row] + beta * _kl(table, row, step, kl)

    return _every_row(table, cell)


def gmpo(
    table: Table, *, low: float = 0.4, high: float = 0.4, beta: float = 0.0, kl: str = "k3", unbiased: bool = True, eps: float = 1e-4
) -> Tensor:
    scores, total = _scores(table, unbiased, eps), _zero(table)
    for row in _rows(table):
        cells, product = _cells(table, row), _constant(1.0)
        for step in cells:
            ratio = torch.exp(_gap(table, row, step))
            if scores[row] > 0 and ratio > math.exp(high):
                ratio = _constant(math.exp(high))
            if scores[row] < 0 and ratio < math.exp(-low):
                ratio = _constant(math.exp(-low))
            product = product * ratio
        total = total - scores[row] * product ** (1 / len(cells))
        total = total + beta * sum((_kl(table, row, step, kl) for step in cells), _zero(table)) / len(cells)
    return total / len(_rows(table))


def vespo(
    table: Table, *, k_positive: float = 2.0, scale_positive: float = 3.0, k_negative: float = 3.0, scale_negative: float = 2.0,
    beta: float = 0.0, kl: str = "k3", unbiased: bool = True, eps: float = 1e-4,
) -> Tensor:  # fmt: skip
    scores = _scores(table, unbiased, eps)

    def cell(row: int, step: int) -> Tensor:
        weight = math.exp(sum(float(_gap(table, row, other)) for other in _cells(table, row)))
        k, scale = (k_positive, scale_positive) if scores[row] >= 0 else (k_negative, scale_negative)
        phi = math.exp(scale) * weight**k * math.exp(-scale * weight)
        return -phi * scores[row] * table.log_probs[row, step] + beta * _kl(table, row, step, kl)

    return _every_cell(table, cell)


def gpg(table: Table, *, std: str = "none", correct: bool = True, eps: float = 1e-4) -> Tensor:
    scores = _scores(table, eps=eps, std=std)
    known = sum(not math.isnan(reward) for reward in table.rewards.tolist())
    alpha = known / sum(1 for _ in _compared(table, table.rewards.tolist())) if correct else 1.0
    return _every_cell(table, lambda i, t: -alpha * scores[i] * table.log_probs[i, t])


def _covariances(table: Table, scores: list[float]) -> dict[tuple[int, int], float]:
    cells = [(row, step) for row in _rows(table) for step in _cells(table, row)]
    mean_score = statistics.mean(scores[row] for row, _ in cells)
    mean_log = statistics.mean(float(table.log_probs[cell]) for cell in cells)
    return {cell: (scores[cell[0]] - mean_score) * (float(table.log_probs[cell]) - mean_log) for cell in cells}


def clip_cov(
    table: Table, *, share: float = 2e-4, low: float = 1.0, high: float = 5.0, pick: str = "expected", clip: float = 0.2,
    unbiased: bool = True, eps: float = 1e-4,
) -> Tensor:  # fmt: skip
    scores = _scores(table, unbiased, eps)
    values = _covariances(table, scores)

    def cut(row: int, step: int) -> bool:
        ratio = math.exp(float(_gap(table, row, step)))
        return (scores[row] > 0 and ratio > 1 + clip) or (scores[row] < 0 and ratio < 1 - clip)

    candidates = [cell for cell, value in values.items() if low < value < high and not cut(*cell)]
    count = max(int(share * len(values)), 1)
    top = sorted(candidates, key=lambda cell: -values[cell])[:count]

    def cell(row: int, step: int) -> Tensor:
        kept = 1.0
        if pick == "largest":
            kept = 0.0 if (row, step) in top else 1.0
        elif (row, step) in candidates:
            kept = max(0.0, 1 - count / len(candidates))
        return kept * _ppo(_gap(table, row, step), scores[row], clip, clip)

    return _every_cell(table, cell)


def kl_cov(table: Table, *, share: float = 2e-4, price: float = 1.0, unbiased: bool = True, eps: float = 1e-4) -> Tensor:
    scores = _scores(table, unbiased, eps)
    values = _covariances(table, scores)
    top = sorted(values, key=lambda cell: -values[cell])[: max(int(share * len(values)), 1)]

    def cell(row: int, step: int) -> Tensor:
        gap = _gap(table, row, step)
        return -torch.exp(gap) * scores[row] + (price * gap.abs() if (row, step) in top else 0.0)

    return _every_cell(table, cell)


def dppo(
    table: Table, *, low: float | None = None, high: float | None = None, divergence: str = "tv", largest: float | None = None,
    trust: float = 0.0, length: float | None = 1.0, std: str = "none", eps: float = 1e-4,
) -> Tensor:  # fmt: skip
    scores, bound = _scores(table, True, eps, std), 0.2 if divergence == "tv" else 0.05
    low, high = bound if low is None else low, bound if high is None else high

    def cell(row: int, step: int) -> Tensor:
        gap = _gap(table, row, step)
        now, old = math.exp(float(table.log_probs[row, step])), math.exp(float(table.old[row, step]))
        apart = abs(now - old)
        if divergence == "kl":
            apart = old * math.log(old / now) + (1 - old) * math.log((1 - old) / (1 - now))
        outside = (scores[row] > 0 and now > old and apart > high) or (scores[row] < 0 and now < old and apart > low)
        kept = 0.0 if outside else 1.0 if largest is None else min(1.0, largest * old / now)
        return kept * -torch.exp(gap) * scores[row] + trust * gap * gap

    return _every_cell(table, cell) if length is None else _every_row(table, cell, length=False) / length


def opo(table: Table, *, clip: float | None = None) -> Tensor:
    rewards, scores = table.rewards.tolist(), [0.0] * len(table.rewards)
    low, high = (1.0, math.inf) if clip is None else (clip, clip)
    for row, _ in _compared(table, rewards):
        others = _known(table, rewards, row)
        lengths = {other: len(_cells(table, other)) for other in others}
        scores[row] = rewards[row] - sum(lengths[other] * rewards[other] for other in others) / sum(lengths.values())
    return _every_cell(table, lambda i, t: _ppo(_gap(table, i, t), scores[i], low, high))


def optimal_token_baseline(table: Table, *, clip: float | None = 0.2, gamma: float = 1.0) -> Tensor:
    rewards, ahead = table.rewards.tolist(), {}
    low, high = (1.0, math.inf) if clip is None else (clip, clip)
    energy: dict[tuple[int, int], float] = {}
    earned: dict[tuple[int, int], float] = {}
    for row in _known_rows(table):
        cells, gathered = _cells(table, row), 0.0
        for place, step in enumerate(cells):
            gathered += 1 - 2 * math.exp(float(table.old[row, step])) + math.exp(float(table.collision[row, step]))
            energy[row, step] = gathered
            earned[row, step] = gamma ** (len(cells) - 1 - place) * rewards[row]
    for row, _ in _compared(table, rewards):
        for step in _cells(table, row):
            others = [other for other in _known(table, rewards, row) if (other, step) in energy]
            weight = sum(energy[other, step] for other in others)
            ahead[row, step] = earned[row, step] - sum(energy[other, step] * earned[other, step] for other in others) / weight
    return _every_cell(table, lambda i, t: _ppo(_gap(table, i, t), ahead.get((i, t), 0.0), low, high))


def _plain(table: Table, scores: list[float], clip: float, beta: float, kl: str, rows: bool) -> Tensor:
    def cell(row: int, step: int) -> Tensor:
        return _ppo(_gap(table, row, step), scores[row], clip, clip) + beta * _kl(table, row, step, kl)

    return _every_row(table, cell) if rows else _every_cell(table, cell)


def pass_at_k(
    table: Table, *, clip: float = 0.2, beta: float = 0.0, kl: str = "k3", std: str = "none", unbiased: bool = True, eps: float = 1e-6
) -> Tensor:
    rewards, scores = table.rewards.tolist(), [0.0] * len(table.rewards)
    for row, others in _compared(table, rewards):
        ordered = sorted(others, reverse=True)
        if rewards[row] == ordered[0]:
            scores[row] = ordered[0] - ordered[1]
            if std == "group":
                scores[row] /= (statistics.stdev(others) if unbiased else statistics.pstdev(others)) + eps
    return _plain(table, scores, clip, beta, kl, rows=False)


def gdpo(
    table: Table, *, reward_weights: dict[str, float] | None = None, clip: float = 0.2, beta: float = 0.0, kl: str = "k3", eps: float = 1e-4
) -> Tensor:
    weights = dict.fromkeys(table.parts, 1.0) if reward_weights is None else reward_weights
    apart = {name: _z_scores(table, table.parts[name].tolist(), True, eps) for name in weights}
    total = [sum(weight * apart[name][row] for name, weight in weights.items()) for row in range(len(table.rewards))]
    known = [total[row] for row in range(len(total)) if not math.isnan(float(table.rewards[row]))]
    middle, spread = statistics.mean(known), statistics.stdev(known) + eps
    scores = [0.0 if math.isnan(float(table.rewards[row])) else (total[row] - middle) / spread for row in range(len(total))]
    return _plain(table, scores, clip, beta, kl, rows=True)


def grpo_s(
    table: Table,
    *,
    difference: str | None = None,
    gap: str | None = None,
    outlier: float | None = None,
    clip: float = 0.2,
    beta: float = 0.04,
    kl: str = "k3",
) -> Tensor:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    scores = _scores(table)
    if difference is not None:
        deltas = table.parts[difference].tolist()
        middle = sigmoid(statistics.mean(delta for delta in deltas if not math.isnan(delta)))
        scores = [0.0 if math.isnan(delta) else score * sigmoid(delta) / middle for score, delta in zip(scores, deltas, strict=True)]
    if gap is not None and outlier is not None:
        known = [value for value in table.parts[gap].tolist() if not math.isnan(value)]
        kept = [value for value in known if (value - statistics.mean(known)) ** 2 <= outlier]
        scores = [score * sigmoid(statistics.mean(kept)) / sigmoid(statistics.mean(known)) for score in scores]
    return _plain(table, scores, clip, beta, kl, rows=True)


# name of the method -> (hyper-parameters, oracle) of every case; each keyword of a method is moved at least once.
Cases = list[tuple[dict[str, Any], Callable[..., Tensor]]]
_SPREAD: dict[str, Any] = {"beta": 0.1, "kl": "k2", "unbiased": False, "eps": 0.1}
ORACLES: dict[str, Cases] = {
    "reinforce": [({}, reinforce), ({"baseline": "group", "beta": 0.1, "kl": "k3"}, reinforce), ({"baseline": "none"}, reinforce)],
    "reinforce_plus_plus": [
        ({}, reinforce_plus_plus),
        ({"clip": 0.05, "dual": 1.2, "beta": 0.3, "gamma": 0.9, "eps": 0.1}, reinforce_plus_plus),
        ({"beta": 0.0}, reinforce_plus_plus),
    ],
    "reinforce_plus_plus_baseline": [
        ({}, reinforce_plus_plus_baseline),
        ({"clip": 0.05, "dual": 1.2, "beta": 0.3, "kl": "k3", "eps": 0.1}, reinforce_plus_plus_baseline),
    ],
    "remax": [({}, remax), ({"beta": 0.3, "gamma": 0.9, "largest": 0.4}, remax)],
    "gspo": [
        ({}, gspo),
        ({"low": 0.02, "high": 0.05, "form": "token", **_SPREAD}, gspo),
        ({"low": 0.5, "high": 1.0, "dual": 1.05}, gspo),
    ],
    "luspo": [({}, luspo), ({"low": 0.02, "high": 0.05, **_SPREAD}, luspo)],
    "cispo": [({}, cispo), ({"smallest": 0.9, "largest": 1.1, **_SPREAD}, cispo)],
    "sapo": [({}, sapo), ({"positive": 2.0, "negative": 3.0, **_SPREAD}, sapo)],
    "gmpo": [({}, gmpo), ({"low": 0.1, "high": 0.05, **_SPREAD}, gmpo)],
    "vespo": [
        ({}, vespo),
        ({"k_positive": 1.0, "scale_positive": 0.5, "k_negative": 2.0, "scale_negative": 1.0, **_SPREAD}, vespo),
    ],
    "gpg": [({}, gpg), ({"std": "group", "correct": False, "eps": 0.1}, gpg)],
    "clip_cov": [
        ({}, clip_cov),
        ({"share": 0.05, "low": 0.005, "high": 2.0, "clip": 0.6}, clip_cov),
        ({"share": 0.1, "low": 0.01, "pick": "largest", "unbiased": False, "eps": 0.1}, clip_cov),
    ],
    "kl_cov": [({}, kl_cov), ({"share": 0.2, "price": 0.3, "unbiased": False, "eps": 0.1}, kl_cov)],
    "dppo": [
        ({}, dppo),
        ({"low": 0.02, "high": 0.05, "trust": 0.1, "length": None}, dppo),
        ({"low": 0.01, "high": 0.02, "divergence": "kl", "length": 4.0, "std": "group", "eps": 0.1}, dppo),
        ({"divergence": "kl", "largest": 1.1}, dppo),
    ],
    "opo": [({}, opo), ({"clip": 0.1}, opo)],
    "optimal_token_baseline": [({}, optimal_token_baseline), ({"clip": None, "gamma": 0.9}, optimal_token_baseline)],
    "pass_at_k": [({}, pass_at_k), ({"clip": 0.05, "std": "group", **_SPREAD}, pass_at_k)],
    "gdpo": [
        ({}, gdpo),
        ({"reward_weights": {"first": 2.0, "second": 0.5}, "clip": 0.05, "beta": 0.1, "kl": "k2", "eps": 0.1}, gdpo),
    ],
    "grpo_s": [
        ({}, grpo_s),
        ({"difference": "hardness"}, grpo_s),
        ({"difference": "hardness", "gap": "first", "outlier": 1.0, "clip": 0.05, "beta": 0.1, "kl": "k2"}, grpo_s),
    ],
}
SATURATING = {
    "sapo": "the soft gate closes on a row that ran away",
    "vespo": "the weight of a row that ran away fades to 0",
    "pass_at_k": "no row but the best of its group has a gradient",
}
