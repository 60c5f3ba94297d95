"""Straight-line oracles of methods that carry a reward's gradient back: what is learned of a step whose adjoint is known.

That adjoints are right is shown in tests/policies/test_adjoints.py; a table here holds ``adjoint . (mean - what was recorded)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.oracles.policy_gradient import _cells, _rows, _zero
from tests.oracles.tables import Table


def _ascent(table: Table, *, beta: float = 0.0, divided: float = 1.0) -> Tensor:
    total = _zero(table)
    for row in _rows(table):
        for step in _cells(table, row):
            if not math.isnan(float(table.rewards[row])):
                total = total - table.adjoint[row, step]
            if beta and table.mean is not None and table.mean_ref is not None:
                moved = table.mean[row, step] - table.mean_ref[row, step]
                total = total + beta * (moved**2).sum() / (2 * table.std[row, step] ** 2) / divided
    return total / len(_rows(table))


def draft(table: Table, *, last_steps: int | None = 1, copies: int = 1, beta: float = 0.0, kl: str = "paper") -> Tensor:
    return _ascent(table, beta=beta, divided=table.event_size if kl == "per_scalar" else 1)


def refl(table: Table, *, low: int = 31, high: int = 40, most: float = 2.0) -> Tensor:
    return _ascent(table)


def alignprop(table: Table, *, low: int = 1, high: int | None = None, target: float | None = None) -> Tensor:
    return _ascent(table)


def drtune(table: Table, *, count: int = 2, early: int = 1) -> Tensor:
    return _ascent(table)


def adjoint_matching(
    table: Table, *, beta: float = 1.0, count: int | None = None, quantile: float | None = None, subjects: float = 0.0
) -> Tensor:
    """The square as the paper has it, less what does not depend on the policy: ``beta/2 |m / std + std a|^2`` with a = -adjoint / beta."""
    if quantile is None:
        return _ascent(table, beta=beta)
    size, known = table.std * table.adjoint_size, table.mask & ~table.rewards.isnan()[:, None]
    ordered = sorted(float(value) for value in size[known])
    place = quantile * (len(ordered) - 1)
    limit = ordered[math.floor(place)] + place % 1 * (ordered[math.ceil(place)] - ordered[math.floor(place)])
    inside = replace(table, mask=table.mask & ((size <= limit) | table.rewards.isnan()[:, None]))
    return _ascent(inside, beta=beta) * len(_rows(inside)) / len(_rows(table))


def dmd2(
    table: Table, *, teacher: str = "ref", guidance: float = 1.0, updates: int = 5, fake_rate: float | None = None, reward: float = 0.0,
    low: float = 0.02, high: float = 0.98, weight: str = "absolute", gan: float = 0.0, classify: float = 0.01, gan_high: float = 1.0,
) -> Tensor:  # fmt: skip
    """What pulls a clean estimate is in the adjoint, like a reward's gradient."""
    return _ascent(table)


def flash_dmd(
    table: Table, *, teacher: str = "ref", guidance: float = 1.0, updates: int = 5, fake_rate: float | None = None, share: float = 10.0,
    low: float = 0.02, high: float = 0.98, weight: str = "absolute", gan: float = 0.0, classify: float = 0.01, gan_high: float = 1.0,
) -> Tensor:  # fmt: skip
    total = _ascent(table) * len(_rows(table))
    for row in _rows(table):
        known = [float(table.rewards[i]) for i in range(len(table.rewards)) if table.group[i] == table.group[row]]
        known = [reward for reward in known if not math.isnan(reward)]
        if math.isnan(float(table.rewards[row])) or max(known) == min(known):
            continue
        mean = sum(known) / len(known)
        std = math.sqrt(sum((reward - mean) ** 2 for reward in known) / (len(known) - 1))
        advantage = max(-5.0, min(5.0, (float(table.rewards[row]) - mean) / (std + 1e-4)))
        for step in _cells(table, row):
            total = total - share * advantage * table.log_probs[row, step] / table.event_size
    return total / len(_rows(table))


def echotorrent(
    table: Table, *, teachers: Sequence[str] = ("ref",), turn: int = 100, tail: float | None = None, guidance: float = 1.0,
    updates: int = 5, fake_rate: float | None = None, reward: float = 0.0,
) -> Tensor:  # fmt: skip
    """Who teaches, and which frames are pulled, is in the adjoint."""
    return _ascent(table)


def tdm(
    table: Table, *, teacher: str = "ref", guidance: float = 1.0, updates: int = 1, fake_rate: float | None = None, reward: float = 0.0,
    low: float = 0.02, high: float = 0.99, separate: bool = True,
) -> Tensor:  # fmt: skip
    return _ascent(table)


def tdm_r1(
    table: Table, *, teacher: str = "ref", guidance: float = 1.0, share: float = 0.7, reward_guidance: float = 1.0,
    reward_low: float = 0.3, beta: float = 10.0, updates: int = 1, rate: float | None = None,
) -> Tensor:  # fmt: skip
    return _ascent(table)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "draft": [({}, draft), ({"last_steps": None, "copies": 2}, draft), ({"beta": 0.3, "kl": "per_scalar"}, draft)],
    "refl": [({"low": 2, "high": 3, "most": 9.0}, refl), ({}, refl)],
    "alignprop": [({}, alignprop), ({"low": 2, "high": 4, "target": 10.0}, alignprop)],
    "drtune": [({}, drtune), ({"count": 3, "early": 4}, drtune)],
    "dmd2": [
        ({}, dmd2),
        (
            {
                "updates": 2,
                "guidance": 2.0,
                "reward": 0.5,
                "fake_rate": 1e-3,
                "low": 0.1,
                "high": 0.9,
                "weight": "kl",
                "teacher": "big",
                "gan": 0.1,
                "classify": 0.5,
                "gan_high": 0.5,
            },
            dmd2,
        ),
    ],
    "echotorrent": [
        ({}, echotorrent),
        (
            {"teachers": ["big", "ref"], "turn": 2, "tail": 0.5, "guidance": 2.0, "updates": 2, "fake_rate": 1e-3, "reward": 0.5},
            echotorrent,
        ),
    ],
    "flash_dmd": [
        ({}, flash_dmd),
        (
            {
                "updates": 2,
                "guidance": 2.0,
                "share": 0.5,
                "fake_rate": 1e-3,
                "low": 0.1,
                "high": 0.9,
                "weight": "kl",
                "teacher": "big",
                "gan": 0.1,
                "classify": 0.5,
                "gan_high": 0.6,
            },
            flash_dmd,
        ),
    ],
    "tdm": [
        ({}, tdm),
        (
            {"updates": 2, "guidance": 2.0, "reward": 0.5, "fake_rate": 1e-3, "low": 0.1, "high": 0.9, "separate": False, "teacher": "big"},
            tdm,
        ),
    ],
    "tdm_r1": [
        ({}, tdm_r1),
        (
            {
                "updates": 2,
                "guidance": 2.0,
                "share": 0.5,
                "reward_guidance": 3.0,
                "reward_low": 0.5,
                "beta": 1.0,
                "rate": 1e-3,
                "teacher": "big",
            },
            tdm_r1,
        ),
    ],
    "adjoint_matching": [
        ({}, adjoint_matching),
        ({"beta": 0.2, "count": 3}, adjoint_matching),
        ({"quantile": 0.7, "subjects": 0.5}, adjoint_matching),
    ],
}
# A reward's gradient says of each row where it grows: no row is worse than another one, and there is no ratio.
SATURATING = dict.fromkeys(ORACLES, "a row's reward is not compared, its gradient is followed")
