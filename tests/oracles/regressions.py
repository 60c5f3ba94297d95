"""Straight-line oracles of methods that regress on rewards, imitate the best, or play against their own kind."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.oracles.gradients import _gap, _known_rows, _paid, _plain
from tests.oracles.policy_gradient import _cells, _compared, _kl, _known, _ppo, _rows, _zero
from tests.oracles.tables import DRAWN, PAIRS, Table


def _pairs(table: Table, beta: float = 0.0) -> list[tuple[int, int, float]]:
    """Pairs of two rows with live cells and known rewards, and how much more the first one's is."""
    rewards = [float(table.rewards[row]) - beta * sum(_paid(table, row, step) for step in _cells(table, row)) for row in range(12)]
    whole = [(first, second) for first, second in PAIRS if _cells(table, first) and _cells(table, second)]
    values = [(first, second, rewards[first] - rewards[second]) for first, second in whole]
    return [(first, second, gap) for first, second, gap in values if not math.isnan(gap)]


def _moved(table: Table, row: int, turn: bool = False) -> Tensor:
    cells = _cells(table, row)
    if turn:
        earliest = min(float(table.segment[row, step]) for step in cells)
        cells = [step for step in cells if table.segment[row, step] == earliest]
    return sum((_gap(table, row, step) for step in cells), _zero(table))


def _regressed(table: Table, eta: float, turn: bool) -> Tensor:
    total = _zero(table)
    for first, second, gap in _pairs(table):
        total = total + 2 * ((_moved(table, first, turn) - _moved(table, second, turn)) / eta - gap) ** 2
    return total / len(_rows(table))


def rebel(table: Table, *, eta: float = 1.0) -> Tensor:
    return _regressed(table, eta, turn=False)


def refuel(table: Table, *, eta: float = 1.0) -> Tensor:
    return _regressed(table, eta, turn=True)


def p3o(table: Table, *, form: str = "separate", clip: float = 0.2, largest: float = 10.0, beta: float = 0.0) -> Tensor:
    def limited(move: Tensor) -> float:
        return min(max(math.exp(float(move.detach())), 1 / largest), largest)

    total = _zero(table)
    for first, second, gap in _pairs(table, beta):
        one, two = _moved(table, first), _moved(table, second)
        if form == "separate":
            pair = _ppo(one, gap * limited(two), clip, clip) + _ppo(two, -gap * limited(one), clip, clip)
        else:
            weight, between = gap * limited(one + two), one - two
            clipped = between if abs(float(between.detach())) <= clip else _zero(table) + math.copysign(clip, float(between.detach()))
            pair = -min(weight * between, weight * clipped, key=lambda value: float(value.detach()))
        total = total + pair  # half of it, in both rows
    return total / len(_rows(table))


def nash_md(
    table: Table, *, mixture: float = 0.5, tau: float = 0.1, kl: str = "sequence", scale: float = 1.0, opponents: str = "drawn"
) -> Tensor:
    total, known = _zero(table), [row for row in range(12) if not math.isnan(float(table.rewards[row]))]
    theirs = [row for row in DRAWN["mixture"] if row in known] if opponents == "drawn" else _known_rows(table)
    for row in _known_rows(table):
        if opponents == "drawn" and row in DRAWN["mixture"]:
            continue
        others = [other for other in theirs if not math.isnan(float(table.wins[row, other]))]
        weight = dict.fromkeys(others, 1.0)
        if opponents == "weighted":
            weight = {other: math.exp(-mixture * sum(_paid(table, other, step) for step in _cells(table, other))) for other in others}
        ahead = sum(weight[other] * float(table.wins[row, other]) for other in others) / sum(weight.values()) - 0.5 if others else 0.0
        whole = sum(_paid(table, row, step) for step in _cells(table, row))
        for step in _cells(table, row):
            price = whole if kl == "sequence" else _paid(table, row, step)
            total = total - (ahead - tau * price) * table.log_probs[row, step]
    return total / len(_rows(table))


def egpo(table: Table, *, beta: float = 0.1, scale: float = 1.0) -> Tensor:
    total = _zero(table)

    def ahead(row: int) -> float:
        opponents = [other for other in DRAWN["half"] if not math.isnan(float(table.rewards[other]))]
        values = [float(table.wins[row, other]) for other in opponents if not math.isnan(float(table.wins[row, other]))]
        return statistics.mean(values) if values and not math.isnan(float(table.rewards[row])) else math.nan

    for first, second in PAIRS:
        if not _cells(table, first) or not _cells(table, second) or math.isnan(ahead(first) + ahead(second)):
            continue
        moved = [
            sum((table.log_probs[row, step] - table.ref[row, step] for step in _cells(table, row)), _zero(table)) for row in (first, second)
        ]
        total = total + 2 * (moved[0] - moved[1] - (ahead(first) - ahead(second)) / beta) ** 2
    return total / len(_rows(table))


def spo(table: Table, *, scale: float = 1.0, clip: float = 0.2, beta: float = 0.0, kl: str = "k3") -> Tensor:
    rates = []
    for row in range(len(table.rewards)):
        values = [win for win in table.wins[row].tolist() if not math.isnan(win)]
        rates.append(statistics.mean(values) if values and not math.isnan(float(table.rewards[row])) else math.nan)
    scores = [0.0] * len(rates)
    for row, others in _compared(table, rates):
        scores[row] = rates[row] - statistics.mean(others)
    return _plain(table, scores, clip, beta, kl, rows=False)


def a_lol(table: Table, *, ratio: str = "row", clip: float = 0.9, baseline: str = "group", value: float = 1.0) -> Tensor:
    rewards, total = table.rewards.tolist(), _zero(table)
    average = {row: statistics.mean(others) for row, others in _compared(table, rewards)}
    if baseline == "value":
        starts = {row: _cells(table, row)[0] for row in _rows(table) if not math.isnan(rewards[row])}
        average = {row: float(table.judged[row, start]) for row, start in starts.items()}
        total = total + sum(value / 2 * (table.value[row, start] - rewards[row]) ** 2 for row, start in starts.items())
    if baseline == "none":
        average = {row: 0.0 for row in _rows(table) if not math.isnan(rewards[row])}
    for row, expected in average.items():
        ahead = max(0.0, rewards[row] - expected)
        gaps = {step: float(table.log_probs[row, step] - table.ref[row, step]) for step in _cells(table, row)}
        for step, gap in gaps.items():
            ratio_of = {"row": sum(gaps.values()), "token": gap, "none": 0.0}[ratio]
            total = total - min(max(math.exp(ratio_of), 1 - clip), 1 + clip) * ahead * table.log_probs[row, step]
    return total / len(_rows(table))


def _imitated(table: Table, weight: Callable[[int], float], add: Callable[[int, int], Tensor] | None = None) -> Tensor:
    total, count = _zero(table), 0
    for row in _rows(table):
        for step in _cells(table, row):
            total, count = total - weight(row) * table.log_probs[row, step], count + 1
            total = total if add is None else total + add(row, step)
    return total / count


def _ranked(table: Table, rewards: list[float], best: int) -> set[int]:
    return {row for row, others in _compared(table, rewards) if rewards[row] in sorted(others, reverse=True)[:best]}


def raft(table: Table, *, best: int = 1, beta: float = 0.0) -> Tensor:
    shaped = [
        float(reward) - beta * sum(_paid(table, row, step) for step in _cells(table, row)) for row, reward in enumerate(table.rewards)
    ]
    kept = _ranked(table, shaped, best)
    return _imitated(table, lambda row: float(row in kept))


def superhf(table: Table, *, best: int = 1, beta: float = 0.35, kl: str = "reverse") -> Tensor:
    kept = _ranked(table, table.rewards.tolist(), best)

    def prior(row: int, step: int) -> Tensor:
        return beta * (table.reverse_kl[row, step] if kl == "reverse" else _kl(table, row, step, kl))

    return _imitated(table, lambda row: float(row in kept), prior)


def reward_weighted_regression(table: Table, *, temperature: float = 1.0, over: str = "group", largest: float | None = None) -> Tensor:
    rewards, total = table.rewards.tolist(), _zero(table)
    for row in _known_rows(table):
        others = _known(table, rewards, row) if over == "group" else [i for i, reward in enumerate(rewards) if not math.isnan(reward)]
        weight = math.exp(rewards[row] / temperature)
        weight /= statistics.mean(math.exp(rewards[other] / temperature) for other in others)
        weight = weight if largest is None else min(weight, largest)
        total = total - weight * sum(table.log_probs[row, step] for step in _cells(table, row)) / len(_cells(table, row))
    return total / len(_rows(table))


def trpa(table: Table, *, beta: float = 0.1, anisotropy: float = 2.5, trust: float = 0.001) -> Tensor:
    rewards, total = table.rewards.tolist(), _zero(table)
    highest = max(reward for reward in rewards if not math.isnan(reward))
    for row in _rows(table):
        costs = []
        for other in _rows(table):
            both = table.group[row] == table.group[other] and not math.isnan(rewards[row] + rewards[other])
            if not both or rewards[row] == rewards[other]:
                continue
            better, worse = (row, other) if rewards[row] > rewards[other] else (other, row)
            means = [
                sum(table.log_probs[i, step] - table.ref[i, step] for step in _cells(table, i)) / len(_cells(table, i))
                for i in (better, worse)
            ]
            scale = beta * (anisotropy if rewards[better] == highest else 1.0)
            costs.append(functional.softplus(-scale * (means[0] - means[1])))
        total = total + (sum(costs) / len(costs) if costs else 0.0)
        gaps = [_gap(table, row, step) for step in _cells(table, row)]
        total = total + trust * sum(torch.exp(-gap) - 1 + gap for gap in gaps) / len(gaps)
    return total / len(_rows(table))


def srpo(table: Table, *, revising: str, keeping: str, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    def total(row: int, name: str | None = None) -> Tensor:
        now, ref = (table.log_probs, table.ref) if name is None else table.others[name]
        return sum((now[row, step] - ref[row, step] for step in _cells(table, row)), _zero(table))

    loss = _zero(table)
    for (first, second), strength in zip(PAIRS, table.strength.tolist(), strict=True):
        if math.isnan(strength) or not _cells(table, first) or not _cells(table, second):
            continue
        for wins, likely in (((first, second), strength), ((second, first), 1 - strength)):
            for y, z, target in ((wins[0], wins[1], 0.5), (wins[1], wins[0], -0.5)):
                improver = target - beta * (total(y, revising) - total(z, keeping))
                answerer = target - beta * (total(y, revising) - total(y, keeping) + total(y) - total(z))
                # half of both ways, in both rows of the pair
                loss = loss + likely * ((1 - alpha) * improver**2 + alpha * answerer**2)
    return loss / len(_rows(table))


# name of the method -> (hyper-parameters, oracle) of every case; each keyword of a method is moved at least once.
ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "rebel": [({}, rebel), ({"eta": 0.1}, rebel)],
    "refuel": [({}, refuel), ({"eta": 0.1}, refuel)],
    "srpo": [
        ({"revising": "good", "keeping": "bad"}, srpo),
        ({"revising": "bad", "keeping": "good", "beta": 0.3, "alpha": 0.2}, srpo),
    ],
    "p3o": [
        ({}, p3o),
        ({"form": "joint", "clip": 0.4, "beta": 0.3}, p3o),
        ({"clip": 0.8, "largest": 1.2}, p3o),
        ({"form": "joint", "clip": 1.0, "largest": 1.2}, p3o),
    ],
    "nash_md": [
        ({}, nash_md),
        ({"mixture": 1.0, "tau": 0.3, "kl": "token", "scale": 0.5}, nash_md),
        ({"opponents": "weighted"}, nash_md),
        ({"mixture": 1.0, "tau": 0.3, "kl": "token", "opponents": "weighted"}, nash_md),
    ],
    "egpo": [({}, egpo), ({"beta": 0.7, "scale": 0.5}, egpo)],
    "spo": [({}, spo), ({"scale": 0.5, "clip": 0.05, "beta": 0.1, "kl": "k2"}, spo)],
    "a_lol": [
        ({}, a_lol),
        ({"ratio": "token", "clip": 0.1}, a_lol),
        ({"ratio": "none"}, a_lol),
        ({"baseline": "value", "value": 0.3}, a_lol),
        ({"baseline": "value", "ratio": "token"}, a_lol),
        ({"baseline": "none"}, a_lol),
    ],
    "raft": [({}, raft), ({"best": 2, "beta": 0.3}, raft)],
    "superhf": [({}, superhf), ({"best": 2, "beta": 0.3, "kl": "exact"}, superhf)],
    "reward_weighted_regression": [
        ({}, reward_weighted_regression),
        ({"temperature": 0.3, "over": "batch", "largest": 2.0}, reward_weighted_regression),
    ],
    "trpa": [({}, trpa), ({"beta": 2.0, "anisotropy": 1.5, "trust": 0.2}, trpa), ({"trust": 0.0}, trpa)],
}
SATURATING = {
    "egpo": "a row that met no opponent says nothing, and of two rows one is the opponent",
    "a_lol": "only rows better than their group have a gradient",
    "raft": "only the best rows have a gradient",
    "superhf": "only the best rows have a gradient, besides the prior",
    "reward_weighted_regression": "no row is pushed down: a bad one only weighs less",
}
