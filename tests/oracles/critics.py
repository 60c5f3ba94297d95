"""Straight-line oracles of methods with a critic: every row by itself, from the last step to the first."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Need
from tests.oracles.gradients import _gap, _known_rows, _paid, _whiten
from tests.oracles.policy_gradient import _cells, _known, _ppo, _rows, _zero
from tests.oracles.tables import Table

Cells = dict[tuple[int, int], float]


def _gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The sum of discounted temporal differences, written out."""
    ahead = [*values[1:], 0.0]
    errors = [reward + gamma * later - now for reward, later, now in zip(rewards, ahead, values, strict=True)]
    return [sum((gamma * lam) ** (s - t) * errors[s] for s in range(t, len(errors))) for t in range(len(errors))]


def _loss(
    table: Table, earned: Callable[[int], list[float]], *, gamma: float, lam: float, value: float, clip: float = 0.2,
    dual: float | None = None, value_clip: float | None = None, entropy: float = 0.0, whiten: bool = True, largest: float = math.inf,
    share: Callable[[int], float] = lambda row: 1.0, runs: Callable[[int], list[list[int]]] | None = None, mean: bool = True,
) -> Tensor:  # fmt: skip
    """earned: row -> a reward for each of its live cells. runs: row -> its macro actions as lists of cells; one cell each by default."""
    split = runs or (lambda row: [[step] for step in _cells(table, row)])
    ahead: Cells = {}
    target: Cells = {}
    old: Cells = {}
    for row in _known_rows(table):
        own = dict(zip(_cells(table, row), earned(row), strict=True))
        pooled = [sum(float(table.judged[row, step]) for step in run) / (len(run) if mean else 1) for run in split(row)]
        values = _gae([sum(own[step] for step in run) for run in split(row)], pooled, gamma, lam)
        for run, judged, advantage in zip(split(row), pooled, values, strict=True):
            for step in run:
                ahead[row, step], target[row, step], old[row, step] = advantage, advantage + judged, judged
    if whiten:
        ahead = _whiten(table, ahead, 1e-8)
    total, count = _zero(table), 0
    for row in _rows(table):
        for step in _cells(table, row):
            count += 1
            total = total - entropy * table.entropy[row, step]
            if (row, step) not in ahead:
                continue
            score = max(-largest, min(largest, ahead[row, step])) * share(row)
            surrogate = _ppo(_gap(table, row, step), score, clip, clip)
            if dual is not None and score < 0 and surrogate > -dual * score:
                surrogate = torch.tensor(-dual * score, dtype=torch.float64)
            run = next(run for run in split(row) if step in run)
            judged = sum((table.value[row, inside] for inside in run), _zero(table)) / (len(run) if mean else 1)
            error = (judged - target[row, step]) ** 2
            if value_clip is not None:
                low, high = old[row, step] - value_clip, old[row, step] + value_clip
                near = (judged.clamp(low, high) - target[row, step]) ** 2
                error = error if error > near else near
            total = total + surrogate + share(row) * value * error / 2
    return total / count


def _priced(table: Table, beta: float, rewards: list[float] | None = None) -> Callable[[int], list[float]]:
    judged = table.rewards.tolist() if rewards is None else rewards

    def earned(row: int) -> list[float]:
        values = [-beta * _paid(table, row, step) for step in _cells(table, row)]
        values[-1] += judged[row]
        return values

    return earned


def ppo(
    table: Table, *, gamma: float = 1.0, lam: float = 0.95, value: float = 1.0, value_clip: float | None = 0.2, beta: float = 0.02,
    target_kl: float | None = None, **rest: Any,
) -> Tensor:  # fmt: skip
    return _loss(table, _priced(table, beta), gamma=gamma, lam=lam, value=value, value_clip=value_clip, **rest)


def _turns(table: Table, row: int) -> list[list[int]]:
    """Its live cells, those that stand side by side as one turn."""
    turns: list[list[int]] = []
    for step in _cells(table, row):
        if turns and turns[-1][-1] == step - 1:
            turns[-1].append(step)
        else:
            turns.append([step])
    return turns


def turns_wanted(table: Table, *, gamma: float) -> dict[tuple[str, int, int], float]:
    """What each of the two Q is to say at a turn's last cell: what was earned, and what V's copy says before the next turn."""
    wanted: dict[tuple[str, int, int], float] = {}
    for row in _known_rows(table):
        turns = _turns(table, row)
        for place, run in enumerate(turns):
            for k in "12":
                if place + 1 < len(turns):
                    wanted[f"q{k}", row, run[-1]] = gamma * float(table.said[Need(f"v{k}", "target")][row, turns[place + 1][0]])
                else:
                    wanted[f"q{k}", row, run[-1]] = float(table.rewards[row])
    return wanted


def archer(
    table: Table, *, clip: float = 0.2, gamma: float = 0.95, tau: float = 0.1, earned: float = 0.0, value: float = 1.0,
    whiten: bool = False, critic_first: int = 0, replay: int = 128, capacity: int = 4096,
) -> Tensor:  # fmt: skip
    """Of the rollout at hand; of rows that are replayed see tests/recipes/test_replayed.py."""
    ahead: Cells = {}
    wanted = turns_wanted(table, gamma=gamma)
    for row in _known_rows(table):
        turns = _turns(table, row)
        for place, run in enumerate(turns):
            said = {k: float(table.said[Need(k)][row, run[-1] if k[0] == "q" else run[0]]) for k in ("q1", "q2", "v1", "v2")}
            in_the_end = float(table.rewards[row]) * gamma ** (len(turns) - 1 - place)
            worth = (1 - earned) * min(said["q1"], said["q2"]) + earned * in_the_end
            ahead |= {(row, step): worth - min(said["v1"], said["v2"]) for step in run}
            wanted |= {(f"v{k}", row, run[0]): float(table.said[Need(f"q{k}", "target")][row, run[-1]]) for k in "12"}
    if whiten:
        ahead = _whiten(table, ahead, 1e-8)
    total, count = _zero(table), 0
    for row in _rows(table):
        for step in _cells(table, row):
            count += 1
            if (row, step) in ahead:
                total = total + _ppo(_gap(table, row, step), 0.0 if critic_first else ahead[row, step], clip, clip)
    for (name, row, step), target in wanted.items():
        total = total + value * (getattr(table, name)[row, step] - target) ** 2 / 2
    return total / count


def ppo_max(
    table: Table, *, gamma: float = 1.0, lam: float = 0.95, value: float = 1.0, value_clip: float | None = 0.2, beta: float = 0.02,
    centre: bool = False, reward_clip: float = 10.0, advantage_clip: float | None = 0.5, critic_first: int = 0, **rest: Any,
) -> Tensor:  # fmt: skip
    known = [reward for reward in table.rewards.tolist() if not math.isnan(reward)]
    middle = sum(known) / len(known)
    spread = math.sqrt(sum((reward - middle) ** 2 for reward in known) / (len(known) - 1))
    scaled = [(reward - (middle if centre else 0.0)) / spread for reward in table.rewards.tolist()]
    scaled = [max(-reward_clip, min(reward_clip, reward)) if reward == reward else reward for reward in scaled]
    bound = math.inf if advantage_clip is None else advantage_clip
    bound = 0.0 if critic_first else bound  # no policy gradient at all
    earned = _priced(table, beta, scaled)
    return _loss(table, earned, gamma=gamma, lam=lam, value=value, value_clip=value_clip, largest=bound, **rest)


def pf_ppo(
    table: Table, *, keep: str = "best_worst", power: float = 2.0, gamma: float = 1.0, lam: float = 0.95, value: float = 1.0,
    beta: float = 0.02, **rest: Any,
) -> Tensor:  # fmt: skip
    rewards = table.rewards.tolist()

    def share(row: int) -> float:
        others = _known(table, rewards, row)
        judged = [rewards[other] for other in others]
        if len(set(judged)) == 1:
            return 1.0
        if keep == "power":
            return len(judged) * abs(rewards[row]) ** power / sum(abs(reward) ** power for reward in judged)
        chance = 0.5 if rewards[row] == max(judged) else 0.0
        if keep == "best_worst":
            chance += 0.5 if rewards[row] == min(judged) else 0.0
        elif rewards[row] != max(judged):
            chance = 0.5 / (len(judged) - 1)
        return len(judged) * chance

    return _loss(table, _priced(table, beta), gamma=gamma, lam=lam, value=value, share=share, **rest)


def nlpo(
    table: Table, *, clip: float = 0.2, gamma: float = 0.99, lam: float = 0.95, value: float = 0.5, beta: float = 0.1, **_: Any
) -> Tensor:
    return _loss(table, _priced(table, beta), clip=clip, gamma=gamma, lam=lam, value=value)


def rto(
    table: Table, *, judge: str, dense: float = 0.05, dense_clip: float | None = None, terminal: float = 1.0, beta: float = 0.05,
    gamma: float = 1.0, lam: float = 0.95, value: float = 1.0, clip: float = 0.2,
) -> Tensor:  # fmt: skip
    bound, judged = math.inf if dense_clip is None else dense_clip, getattr(table, judge)

    def earned(row: int) -> list[float]:
        paid = []
        for step in _cells(table, row):
            liked = float(judged[row, step] - table.ref[row, step])
            paid.append(dense * max(-bound, min(bound, liked)) - beta * _paid(table, row, step))
        paid[-1] += terminal * float(table.rewards[row])
        return paid

    return _loss(table, earned, gamma=gamma, lam=lam, value=value, clip=clip)


def ma_rlhf(
    table: Table, *, macro: str = "ngram", length: int = 5, pool: str = "mean", clip: float = 0.2, gamma: float = 1.0, lam: float = 0.95,
    value: float = 1.0, beta: float = 0.02,
) -> Tensor:  # fmt: skip
    def runs(row: int) -> list[list[int]]:
        cells = _cells(table, row)
        if macro == "ngram":
            return [cells[start : start + length] for start in range(0, len(cells), length)]
        if macro == "perplexity":
            calmer: list[list[int]] = []
            for step in cells:
                if calmer and float(table.ref[row, step]) >= float(table.ref[row, calmer[-1][-1]]):
                    calmer[-1].append(step)
                else:
                    calmer.append([step])
            return calmer
        numbers = sorted({float(table.segment[row, step]) for step in cells})
        return [[step for step in cells if table.segment[row, step] == number] for number in numbers]

    price = _priced(table, beta)
    return _loss(table, price, gamma=gamma, lam=lam, value=value, clip=clip, runs=runs, mean=pool == "mean")


def fine_grained_rlhf(
    table: Table, *, terminal: float = 0.0, beta: float = 0.3, clip: float = 0.2, gamma: float = 1.0, lam: float = 0.95, value: float = 1.0
) -> Tensor:
    def earned(row: int) -> list[float]:
        values = [float(table.dense[row, step]) - beta * _paid(table, row, step) for step in _cells(table, row)]
        values[-1] += terminal * (float(table.rewards[row]) - sum(float(table.dense[row, step]) for step in _cells(table, row)))
        return values

    return _loss(table, earned, gamma=gamma, lam=lam, value=value, clip=clip)


# name of the method -> (hyper-parameters, oracle) of every case; each keyword of a method is moved at least once.
_JUDGED: dict[str, Any] = {"clip": 0.05, "gamma": 0.9, "lam": 0.7, "value": 0.3}


def dead_end_value(table: Table, *, bad_below: float = 0.5, then: str = "best") -> Tensor:
    """Word by word: what the next one is worth at its best, and of the last one whether the row ended badly."""
    total, cells = _zero(table), sum(len(_cells(table, row)) for row in _rows(table))
    for row in _rows(table):
        live, reward = _cells(table, row), float(table.rewards[row])
        for step, following in zip(live, [*live[1:], None], strict=True):
            if not math.isnan(reward):
                known = table.dead_end_best if then == "best" else table.dead_end
                after = -float(reward < bad_below) if following is None else float(known[row, following].detach())
                total = total + (table.dead_end[row, step] - after) ** 2 / 2 / cells
    return total


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "archer": [
        ({}, archer),
        ({"clip": 0.3, "gamma": 0.8, "tau": 0.5, "value": 0.4, "whiten": True, "earned": 0.3, "replay": 0, "capacity": 9}, archer),
        ({"critic_first": 2, "gamma": 0.6}, archer),
    ],
    "ppo": [
        ({}, ppo),
        ({**_JUDGED, "dual": 1.2, "value_clip": None, "entropy": 0.1, "beta": 0.3, "whiten": False}, ppo),
        ({"value_clip": 0.05, "beta": 0.2, "target_kl": 0.5}, ppo),
        ({"beta": 0.0}, ppo),
    ],
    "ppo_max": [
        ({}, ppo_max),
        ({"critic_first": 1000, "value": 0.3}, ppo_max),
        ({**_JUDGED, "value_clip": 0.1, "entropy": 0.1, "beta": 0.3, "centre": True, "reward_clip": 0.8, "advantage_clip": None}, ppo_max),
    ],
    "pf_ppo": [
        ({}, pf_ppo),
        ({**_JUDGED, "keep": "best_random", "beta": 0.3}, pf_ppo),
        ({"keep": "power", "power": 1.5, "beta": 0.0}, pf_ppo),
    ],
    "nlpo": [({}, nlpo), ({**_JUDGED, "beta": 0.3, "target_kl": None, "rate": 0.1, "top_p": 0.5, "least": 3, "every": 2}, nlpo)],
    "rto": [
        ({"judge": "previous"}, rto),
        ({"judge": "previous", **_JUDGED, "dense": 1.0, "dense_clip": 0.1, "terminal": 0.5, "beta": 0.3}, rto),
    ],
    "ma_rlhf": [
        ({"length": 2}, ma_rlhf),
        ({**_JUDGED, "macro": "segment", "pool": "sum", "beta": 0.3}, ma_rlhf),
        ({"length": 1, "beta": 0.0}, ma_rlhf),
        ({"macro": "perplexity", "gamma": 0.9}, ma_rlhf),
    ],
    "dead_end_value": [({}, dead_end_value), ({"bad_below": -0.2, "then": "said"}, dead_end_value)],
    "fine_grained_rlhf": [({}, fine_grained_rlhf), ({**_JUDGED, "terminal": 0.5, "beta": 0.0}, fine_grained_rlhf)],
}
SATURATING = {"fine_grained_rlhf": "rows are told apart by their steps' rewards, which are equal there"}
