"""Straight-line oracles of losses that train reward models: a column of a table is a dimension, and its numbers are scores."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.oracles.pairs import _cells, _known, _rows, expected, softplus
from tests.oracles.tables import COLUMNS, Table


def _centred(table: Table, better: int, worse: int, step: int, centre: float) -> Tensor:
    return centre * (table.log_probs[better, step] + table.log_probs[worse, step]) ** 2


def bradley_terry(
    table: Table, *, margin: float = 0.0, centre: float = 0.0, smoothing: float = 0.0, correction: str = "smoothed", bagging: float = 1.0
) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = table.log_probs[better, step] - table.log_probs[worse, step] - margin * _gap(table, better, worse, margin)
        right, wrong = torch.log1p(torch.exp(-gap)), torch.log1p(torch.exp(gap))
        if correction == "unbiased":
            value = ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
        elif correction == "likelihood":
            value = -((1 - smoothing) * torch.exp(-right) + smoothing * torch.exp(-wrong)).log()
        else:
            value = (1 - smoothing) * right + smoothing * wrong
        return _bagged(table, better, worse, step or 0, bagging) * value + _centred(table, better, worse, step or 0, centre)

    unrated = [number for number, pair in enumerate(table.pairs) if bool(table.rewards[pair].isnan().any())]
    strength = table.strength.index_fill(0, torch.tensor(unrated, dtype=torch.int64), math.nan) if margin else table.strength
    return expected(replace(table, strength=strength), cost)


def _bagged(table: Table, better: int, worse: int, step: int, bagging: float) -> float:
    """1 / bagging where the pair is of this score's part, else 0: a draw that its two rows' names, of groups here, decide."""
    if bagging == 1:
        return 1.0
    lot = sum(zlib.crc32(str(int(table.group[row])).encode()) for row in (better, worse))
    drawn = torch.rand(table.mask.shape[1], generator=torch.Generator().manual_seed(lot), dtype=torch.float64)
    return float(drawn[step] < bagging) / bagging


def _gap(table: Table, better: int, worse: int, margin: float) -> float:
    return float(table.rewards[better] - table.rewards[worse]) if margin else 0.0


def bradley_terry_ties(table: Table, *, k: float = 5.0, rate: float = 0.0, centre: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        up, down = table.log_probs[better, step].exp(), table.log_probs[worse, step].exp()
        places = [number for number, pair in enumerate(table.pairs.tolist()) if set(pair) == {better, worse}]
        tied = float(table.strength[places[0]]) == 0.5
        win = up / (up + k * down)
        p = (k**2 - 1) * up * down / ((up + k * down) * (down + k * up)) if tied else win
        return -p.log() + _centred(table, better, worse, step or 0, centre)

    return expected(table, cost)


def _learned(table: Table, share: Callable[[int, int], float], centre: float) -> Tensor:
    """Bradley-Terry's loss, of which ``share(place of a pair, score)`` says what counts."""
    places = {frozenset(pair): place for place, pair in enumerate(table.pairs.tolist())}

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        gap = table.log_probs[better, step] - table.log_probs[worse, step]
        return share(places[frozenset((better, worse))], step or 0) * softplus(-gap) + _centred(table, better, worse, step or 0, centre)

    return expected(table, cost)


def _costs(table: Table) -> dict[tuple[int, int], float]:
    """(place of a pair, score) -> Bradley-Terry's loss under its label, of pairs that say something in that score."""
    costs, known = {}, {frozenset((first, second)) for first, second, _ in _known(table)}
    for place, (first, second) in enumerate(table.pairs.tolist()):
        for step in set(_cells(table, first)) & set(_cells(table, second)):
            if frozenset((first, second)) in known:
                p, gap = float(table.strength[place]), float((table.log_probs[first, step] - table.log_probs[second, step]).detach())
                costs[place, step] = p * math.log1p(math.exp(-gap)) + (1 - p) * math.log1p(math.exp(gap))
    return costs


def peer_review(
    table: Table, *, members: int = 2, dropped: float = 0.25, warmup: int = 50, bagging: float = 1.0, centre: float = 0.0
) -> Tensor:
    """The first update, which leaves nothing out; later ones are in tests/objectives/test_several.py."""
    return _learned(table, lambda place, step: _bagged(table, *table.pairs[place].tolist(), step, bagging), centre)


def bradley_terry_mixture(table: Table, *, groups: int = 2, memory: float = 0.9, assignment: str = "hard", centre: float = 0.0) -> Tensor:
    """The first update, and one annotator: what a pair's score counts for follows from the other pairs."""
    costs, tilt = _costs(table), torch.rand(groups, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()

    def share(place: int, step: int) -> float:
        said = [tilt[k] - sum(cost for (other, score), cost in costs.items() if score == k and other != place) for k in range(groups)]
        if assignment == "hard":
            return float(said[step] == max(said))
        return math.exp(said[step]) / sum(math.exp(value) for value in said)

    return _learned(table, share, centre)


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


def bradley_terry_gaussian(table: Table, *, bagging: float = 1.0) -> Tensor:
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
        share = 1.0
        if bagging < 1:
            lot = sum(zlib.crc32(str(int(table.group[row])).encode()) for row in (better, worse))
            heads = torch.rand((COLUMNS + 1) // 2, generator=torch.Generator().manual_seed(lot), dtype=torch.float64)
            share = float(heads[(step or 0) // 2] < bagging) / bagging
        return -share * (density / (1 + torch.exp(-gap - variance**0.5 * grid))).sum().log()

    return expected(table, cost)


def bradley_terry_signed(table: Table, *, weight: float = 1.0) -> Tensor:
    """The sign of a row's reward says which side of 0 its score belongs on."""

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        up, down = table.log_probs[better, step], table.log_probs[worse, step]
        total = torch.log1p(torch.exp(down - up))
        for row, score in ((better, up), (worse, down)):
            if float(table.rewards[row]) > 0:
                total = total + weight * torch.log1p(torch.exp(-score))
            elif float(table.rewards[row]) < 0:
                total = total + weight * torch.log1p(torch.exp(score))
        return total

    silent = [number for number, pair in enumerate(table.pairs) if bool(table.rewards[pair].isnan().any())]
    return expected(replace(table, strength=table.strength.index_fill(0, torch.tensor(silent, dtype=torch.int64), math.nan)), cost)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "bradley_terry": [
        ({}, bradley_terry),
        ({"margin": 0.7, "smoothing": 0.1}, bradley_terry),
        ({"centre": 0.02}, bradley_terry),
        ({"smoothing": 0.25, "correction": "unbiased"}, bradley_terry),
        ({"smoothing": 0.25, "correction": "likelihood", "bagging": 0.5, "margin": 0.3}, bradley_terry),
    ],
    "bradley_terry_mixture": [
        ({"groups": 5}, bradley_terry_mixture),
        ({"groups": 5, "assignment": "soft", "memory": 0.5, "centre": 0.1}, bradley_terry_mixture),
    ],
    "bradley_terry_ties": [
        ({}, bradley_terry_ties),
        ({"k": 2.0, "centre": 0.1}, bradley_terry_ties),
        ({"k": 3.0, "rate": 0.5}, bradley_terry_ties),
    ],
    "peer_review": [
        ({"members": 5}, peer_review),
        ({"members": 5, "dropped": 0.5, "warmup": 1, "bagging": 0.6, "centre": 0.1}, peer_review),
    ],
    "bradley_terry_gaussian": [({}, bradley_terry_gaussian), ({"bagging": 0.5}, bradley_terry_gaussian)],
    "bradley_terry_signed": [({}, bradley_terry_signed), ({"weight": 0.3}, bradley_terry_signed)],
    "general_preference": [
        ({}, general_preference),
        ({"temperature": 0.5, "normalised": True}, general_preference),
    ],
    "list_mle": [({}, list_mle)],
    "score_regression": [({}, score_regression), ({"target": "label"}, score_regression)],
}


def variational_preference(table: Table, *, kl: float = 0.01) -> Tensor:
    """By Simpson's rule, as of the Gaussian scores."""
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) * torch.tensor([1.0] + [4.0, 2.0] * 999 + [4.0, 1.0], dtype=torch.float64)
    density = density / density.sum()

    def cell(row: int, step: int) -> Tensor:
        return table.log_probs[row, step] if step in _cells(table, row) else torch.zeros(()).double()

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        apart = torch.stack([(cell(better, load) - cell(worse, load)) ** 2 for load in range(2, COLUMNS)]).sum()
        std = apart**0.5 if float(apart) else apart  # the root has no slope at 0
        gap = cell(better, 0) - cell(worse, 0)
        return (density * torch.log1p(torch.exp(-gap - std * grid))).sum() + kl * (cell(better, 1) + cell(worse, 1)) / 2

    return expected(table, cost)


def bradley_terry_thinking(table: Table, *, said: float = 1.0, told: float = 0.0) -> Tensor:
    """The first number of a row is its score, the second and the third are what words cost."""

    def cell(row: int, step: int) -> Tensor:
        return table.log_probs[row, step] if step in _cells(table, row) else torch.zeros(()).double()

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        words = sum(weight * (cell(better, place) + cell(worse, place)) / 2 for weight, place in ((said, 1), (told, 2)))
        return torch.log1p(torch.exp(cell(worse, 0) - cell(better, 0))) + words

    return expected(table, cost)


def bradley_terry_contrastive(
    table: Table, *, prototypes: int = 8, weight: float = 0.5, temperature: float = 0.1, sharpness: float = 20.0, rounds: int = 3
) -> Tensor:
    """The first number of a row is its score, then come the cosines of its first view, and of its second."""
    rows = sorted({row for first, second, _ in _known(table) for row in (first, second)})

    def cell(row: int, step: int) -> Tensor:
        return table.log_probs[row, step] if step in _cells(table, row) else torch.zeros(()).double()

    def codes(offset: int) -> dict[int, list[float]]:
        q = {row: [math.exp(float(cell(row, offset + k).detach()) * sharpness) for k in range(prototypes)] for row in rows}
        for _ in range(rounds):
            sums = [sum(own[k] for own in q.values()) for k in range(prototypes)]
            q = {row: [value / total / prototypes for value, total in zip(own, sums, strict=True)] for row, own in q.items()}
            q = {row: [value / sum(own) for value in own] for row, own in q.items()}
        return q

    first, second = codes(1), codes(1 + prototypes)

    def likely(row: int, offset: int) -> list[Tensor]:
        parts = [torch.exp(cell(row, offset + k) / temperature) for k in range(prototypes)]
        return [(part / sum(parts)).log() for part in parts]

    def contrast(row: int) -> Tensor:
        own, other = likely(row, 1), likely(row, 1 + prototypes)
        return -sum(second[row][k] * own[k] + first[row][k] * other[k] for k in range(prototypes)) / 2  # type: ignore[return-value]

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        return torch.log1p(torch.exp(cell(worse, 0) - cell(better, 0))) + weight * (contrast(better) + contrast(worse)) / 2

    return expected(table, cost)


def meta_reward(table: Table, *, rate: float = 0.01) -> Tensor:
    """Of one table: what is climbed first moves the parameters, which a table does not have; see tests/training/test_climbing.py."""
    return bradley_terry(table)


ORACLES["meta_reward"] = [({}, meta_reward), ({"rate": 0.5}, meta_reward)]
ORACLES["bradley_terry_contrastive"] = [
    ({"prototypes": 2}, bradley_terry_contrastive),
    ({"prototypes": 2, "weight": 1.5, "temperature": 0.5, "sharpness": 3.0, "rounds": 1}, bradley_terry_contrastive),
]
ORACLES["bradley_terry_thinking"] = [({}, bradley_terry_thinking), ({"said": 0.4, "told": 0.7}, bradley_terry_thinking)]
ORACLES["variational_preference"] = [({}, variational_preference), ({"kl": 0.3}, variational_preference)]
SATURATING = {"general_preference": "of a number without another one beside it, as that test has it, no embedding is made"}
