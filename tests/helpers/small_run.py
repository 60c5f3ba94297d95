"""A policy that trains in milliseconds, and a call of mm.online around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import mmalign as mm
from mmalign.samplers import kernels, windows
from mmalign.types import Method
from mmalign.worlds import chains, gaussian
from mmalign.worlds.gaussian import GaussianPolicy, QuadraticReward

LINEAR = torch.tensor([1.0, -0.5], dtype=torch.float64)


def policy(num_steps: int = 3) -> GaussianPolicy:
    world = gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5])
    return GaussianPolicy(world, gaussian.flow_levels(num_steps), kernel=kernels.flow_sde())


def method(**changes: Any) -> Method:
    return mm.methods.flow_grpo(**{"ratio": "per_step", "clip": 0.2, "beta": 0.1, "kl": "paper", "std": "none", **changes})


def arguments(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Keywords of ``mm.online``; changes to its settings go into those that are there, and ``optimizer`` takes AdamW's keywords."""
    given: dict[str, Any] = {
        "policy": policy(),
        "prompts": ["a", "b", "c"],
        "rewards": {"linear": QuadraticReward(LINEAR)},
        "method": method(),
        "steps": 6,
        "batch": {"prompts": 2, "group": 4, "updates": 2},
        "optimizer": {"rate": 0.05, "ema": 0.9},
        "evaluation": {"every": 3, "samples": 4},
        "run": {"folder": str(tmp_path), "name": "run", "trackers": ()},
    }
    for key, value in changes.items():
        given[key] = {**given.get(key, {}), **value} if key in ("batch", "optimizer", "evaluation", "run") else value
    return {**given, "optimizer": mm.adamw(**given["optimizer"])}


def online(tmp_path: Path, **changes: Any) -> Any:
    return mm.online(**arguments(tmp_path, **changes))


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def trained(run: Path) -> list[dict[str, Any]]:
    """What a run learned with in each step. The KL is left out: without a reference in the method it is measured where a run ends, too,
    which a run of fewer steps does earlier."""
    return [{key: value for key, value in row.items() if key not in ("kl", "kl_step")} for row in rows(run) if row["phase"] == "train"]


def path_distance(trained: gaussian.GaussianPolicy, best: gaussian.GaussianPolicy) -> float:
    """KL of one policy's whole path to another's, nats, exact: both are linear chains with the same noise."""
    stochastic = windows.all_but_last()(trained.num_steps, 0, torch.Generator())
    with torch.no_grad():
        gains, offsets, stds = chains.chain(trained, stochastic)
        other_gains, other_offsets, _ = chains.chain(best, stochastic)
        start = torch.zeros(trained.size, dtype=torch.float64)
        means, variances = chains.propagate(gains, offsets, stds, start, torch.ones_like(start))
    gain, offset = (gains - other_gains)[:-1], (offsets - other_offsets)[:-1]
    return float((((gain * means[:-2] + offset) ** 2 + gain**2 * variances[:-2]) / (2 * stds[:-1] ** 2)).sum())
