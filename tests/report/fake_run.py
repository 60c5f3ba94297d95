"""A run folder as a recipe leaves it, without the run: real digits, some of them in the wrong row, fewer as training goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmalign.runtime import folder

PROMPTS = [f"digit {word}" for word in ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]]
CONFIG: dict[str, Any] = {
    "seed": 3,
    "steps": 100,
    "policy": {"use": "digits", "kernel": {"use": "flow_sde", "noise_level": 0.7}},
    "rewards": {"proxy": {"use": "digits_classifier"}},
    "judges": {"gold": {"use": "digits_gold"}},
    "method": {"use": "flow_grpo", "clip": 1e-4},
}
EVALS = (0, 20, 40, 60, 80, 100)


def images(wrong: float, seed: int) -> torch.Tensor:
    """``[10, 8, 1, 8, 8]`` digits in 0..1; ``wrong`` of them are of another class than their row."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.default_rng(seed)
    picks = [
        [rng.choice(np.flatnonzero(digits.target == (rng.integers(10) if rng.random() < wrong else row))) for _ in range(8)]
        for row in range(10)
    ]
    return torch.tensor(digits.images[np.array(picks)] / 16.0)[:, :, None]


def make_run(root: Path, *, overoptimised: bool = False, name: str = "digits-flow-grpo", config: dict[str, Any] | None = None) -> Path:
    """6 evaluations with grids, 100 training lines, a summary. ``overoptimised``: gold turns down at step 40, and spread falls."""
    run = folder.open_run(root, name, config=CONFIG if config is None else config)
    run.write_prompts(PROMPTS, list(range(1000, 1008)))
    run.write_real(images(0.0, 7))
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for step in range(101):
        rise = 1 - math.exp(-step / 22)
        if step:
            rows.append({"step": step, "phase": "train", "seconds": 0.5 * step, **train_row(step, rise, rng)})
        if step in EVALS:
            gold = 0.50 + 0.46 * rise - (0.004 * max(0, step - 40) if overoptimised else 0)
            ratio = 1.06 - 0.15 * rise - (0.005 * max(0, step - 40) if overoptimised else 0)
            numbers = {"proxy": 0.48 + 0.51 * rise, "proxy_se": 0.012, "gold": gold, "gold_se": 0.015}
            numbers |= {"spread": 2.1 * ratio, "spread_ratio": ratio, "kl": 9.0 * rise**2}
            rows.append({"step": step, "phase": "eval", "seconds": 0.5 * step, **numbers})
            run.write_samples(step, images(0.5 * (1 - rise), 1))
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.write_json(run.summary, summary(rows))
    return run.path


def train_row(step: int, rise: float, rng: np.random.Generator) -> dict[str, float]:
    reward = 0.45 + 0.5 * rise + 0.03 * rng.standard_normal()
    return {
        "reward": reward,
        "reward_std": 0.4 - 0.3 * rise,
        "reward/proxy": reward,
        "kl": 9.0 * rise**2,
        "ratio_mean": 1 + 0.01 * rng.standard_normal(),
        "ratio_max": 1.3 + 0.4 * rng.random() + (2.0 if step % 37 == 0 else 0.0),
        "clip_fraction": 0.12 + 0.1 * rise + 0.03 * rng.random(),
        "loss": -0.01 * rng.random(),
        "grad_norm": 0.5 + rng.random(),
        "signal_zero": 0.2 * rise,
        "lr": 3e-4,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = [row for row in rows if row["phase"] == "eval"][:: len(EVALS) - 1]
    return {
        "seed": 3,
        "status": "finished",
        "steps": 100,
        "rewards": ["proxy"],
        "judges": ["gold"],
        **{f"{name}_{when}": row[name] for name in ("proxy", "gold") for when, row in (("before", first), ("after", last))},
        "spread_ratio_before": first["spread_ratio"],
        "spread_ratio": last["spread_ratio"],
        "train_seconds": 50.2,
        "preflight_difference": 0.0,
        "event_size": 64,
    }
