"""A run folder as a recipe leaves it, without the run: real digits, some of them in the wrong row, fewer as training goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmalign.runs import folder

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
        "kl_step": rise**2,
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


NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def scene(seed: int) -> tuple[torch.Tensor, list[str]]:
    """``[1, 32, 32]`` in 0..1 with 2 to 5 real digits in it, and their names."""
    from sklearn.datasets import load_digits

    digits, rng = load_digits(), np.random.default_rng(seed)
    picture, there = torch.zeros(1, 32, 32), []
    for cell in rng.permutation(16)[: rng.integers(2, 6)]:
        place = int(rng.integers(len(digits.images)))
        row, column = 8 * int(cell // 4), 8 * int(cell % 4)
        picture[0, row : row + 8, column : column + 8] = torch.tensor(digits.images[place] / 16.0)
        there.append(NAMES[digits.target[place]])
    return picture, sorted(set(there), key=NAMES.index)


def sentence(there: list[str], invented: float, unsaid: float, rng: np.random.Generator) -> tuple[str, list[tuple[int, int, str, bool]]]:
    """An answer that leaves out and invents by chance, and where it names what."""
    mentions = [name for name in there if rng.random() >= unsaid]
    mentions += [name for name in NAMES if name not in there and rng.random() < invented / 6]
    text, marks = "There is", []
    for number, name in enumerate(sorted(mentions, key=NAMES.index)):
        text += " a " if number == 0 else " and a "
        marks.append((len(text), len(text) + len(name), name, name in there))
        text += name
    return (text + ".", marks) if mentions else ("", [])


def make_vlm_run(root: Path, *, silent: bool = False, name: str = "scenes-dpo", questions: int = 14) -> Path:
    """Evaluations of a model that describes scenes of digits and learns to invent less; ``silent``: by saying less and less."""
    from mmalign.runs import answers

    run = folder.open_run(root, name, config={**CONFIG, "use": "offline"})
    scenes = [scene(seed) for seed in range(questions)]
    rows_asked = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Which digits are in the picture?"}]}]
        for picture, _ in scenes
    ]
    rows: list[dict[str, Any]] = []
    for step in EVALS:
        rise, rng = 1 - math.exp(-step / 30), np.random.default_rng(step)
        invented, recall = 0.36 - 0.32 * rise, 0.97 - (0.5 * rise if silent else 0.02 * math.sin(step / 15))
        texts = [sentence(there, 1.4 * invented, 1 - recall, rng) for _, there in scenes]
        marks = [{"mentions": mentions, "objects": there} for (_, mentions), (_, there) in zip(texts, scenes, strict=True)]
        answers.write(run.path, step, rows_asked, [text for text, _ in texts], marks)
        numbers = {"chair_s": invented, "chair_s_se": 0.02, "chair_i": invented / 3, "object_recall": recall, "object_recall_se": 0.008}
        numbers |= {
            "answer_words": 9.0 - (4.0 * rise if silent else -0.4 * rise),
            "answer_words_se": 0.1,
            "image_dependence": 1.1 + 0.5 * rise,
        }
        rows.append({"step": step, "phase": "eval", "seconds": float(step), **numbers, "kl": 4.0 * rise})
        rows.extend(
            {"step": step + n, "phase": "train", "seconds": 1.0, "loss": 0.6, "margin": 0.1 * step} for n in range(1, 20) if step < 100
        )
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.write_json(run.summary, {"seed": 3, "status": "finished", "steps": 100, "rewards": [], "judges": []})
    return run.path
