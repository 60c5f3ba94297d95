"""Trains recipes of configs/digit_scenes with several seeds, and tells inventions and recall of each side by side, as markdown.

python scripts/digit_scenes.py grpo rpo dpo --seeds 3 --runs runs/digit_scenes     # held-out scenes and the variant
python scripts/digit_scenes.py --silence dpo rpo --runs runs/digit_scenes          # what becomes of the better caption, step by step

A run that is finished under --runs is not made again. Every number is of greedy answers, but for the column that says otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import torch

import mmalign as mm
from mmalign.config import build_part, load
from mmalign.runs.trained import trained
from mmalign.types import Need
from mmalign.worlds.digit_scenes.judges import truth_of
from mmalign.worlds.digit_scenes.scenes import named

SCENES = 500
COLUMNS = {
    "CHAIR_s": "held_out chair_s", "CHAIR_i": "held_out chair_i", "recall": "held_out recall", "words": "held_out length",
    "malformed": "held_out malformed", "CHAIR_s, T=1": "sampled chair_s", "recall, T=1": "sampled recall",
    "variant CHAIR_s": "variant chair_s", "variant recall": "variant recall", "s": "train_seconds",
}  # fmt: skip


def finished(name: str, seed: int, runs: Path) -> Path:
    """The folder of a run of ``digit_scenes/name``, which is made where it is not there."""
    folder = runs / f"{name}-{seed}"
    if not (folder / "summary.json").is_file():
        overrides = [f"run.name={folder.name}", f"run.folder={runs}", f"run.seed={seed}"]
        command = [sys.executable, "-m", "mmalign", "train", f"digit_scenes/{name}", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder


def numbers(policy: Any) -> dict[str, float]:
    """What a policy says of held-out scenes, greedy and sampled, and of the variant."""
    hallucination, measured = mm.worlds.scene_hallucination(), dict[str, float]()
    questions: list[tuple[str, Literal["held_out", "variant"], int]] = [
        ("held_out", "held_out", 0),
        ("sampled", "held_out", 1),
        ("variant", "variant", 0),
    ]
    for name, split, temperature in questions:
        prompts = mm.worlds.digit_scenes_prompts(split=split, count=SCENES)
        metrics = hallucination(policy.generate(prompts, list(range(SCENES)), temperature=temperature), prompts)
        measured |= {f"{name} {key}": value for key, value in metrics.items()}
    return measured


def measured(folder: Path) -> dict[str, float]:
    """The numbers of a finished run, kept beside it."""
    kept = folder / "digit_scenes.json"
    if not kept.is_file():
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        row = {**numbers(trained(folder).policy()), "train_seconds": summary["train_seconds"]}
        kept.write_text(json.dumps(row, indent=1), encoding="utf-8")
    numbers_of_run: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return numbers_of_run


def with_spread(values: Sequence[float], digits: int) -> str:
    """A mean, with the standard deviation over seeds where there are several."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def row(name: str, runs: Sequence[dict[str, float]]) -> str:
    """A line of the table."""
    digits = {"train_seconds": 0, "length": 1}  # by the last word
    cells = [with_spread([one[key] for one in runs], digits.get(key.split()[-1], 3)) for key in COLUMNS.values()]
    return f"| {name} | " + " | ".join(cells) + " |"


def early(policy: Any, prompts: Sequence[Any]) -> float:
    """The mass on ending the list too early: of the full stop, or of "and", after the first of three or more digits; scenes on average."""
    rows = [(prompt, truth_of(prompt)) for prompt in prompts]
    rows = [(prompt, digits) for prompt, digits in rows if len(digits) > 2]
    chances = torch.zeros(len(rows), dtype=torch.float64)
    for last in (".", f"and {named(9)} ."):
        texts = [f"there is {named(digits[0])} {last}" for _, digits in rows]
        rollout = policy.encode([prompt for prompt, _ in rows], texts, torch.arange(len(rows)), torch.Generator())
        with torch.no_grad():
            chances += policy.steps(rollout, torch.arange(len(rows))).log_probs[:, 4].exp()
    return float(chances.mean())


def silence(name: str, runs: Path, *, every: int = 15) -> list[str]:
    """What becomes of the better and of the worse captions of pairs as a preference method trains, of how many words, and of recall."""
    config = load(f"digit_scenes/{name}")
    policy, records, method = (build_part(config, key) for key in ("policy", "records", "method"))
    prompts, lines = mm.worlds.digit_scenes_prompts(split="held_out", count=200), []
    some = records[:128]
    prompts_of_pairs, texts = (
        [pair.prompt for pair in some for _ in range(2)],
        [text for pair in some for text in (pair.first, pair.second)],
    )
    rollout = policy.encode(prompts_of_pairs, texts, torch.arange(len(some)).repeat_interleave(2), torch.Generator())
    policy.remember(rollout, ["ref"], 64)
    for step in range(0, config["steps"] + 1, every):
        if step:
            mm.offline(
                policy,
                records,
                method,
                steps=step,
                batch=config["batch"],
                optimizer=build_part(config, "optimizer"),
                evaluation=mm.Evaluation(every=10**6, prompts=prompts[:2], samples=1),
                run=mm.RunSettings(**{**config["run"], "name": f"silence-{name}", "folder": str(runs), "checkpoint_every": every}),
                resume=step > every,
            )
        with torch.no_grad():
            now = policy.steps(rollout, torch.arange(2 * len(some)), needs=frozenset({Need("refs")}))
        ratio = (now.log_probs - now.refs["ref"]).sum(1)
        metrics = mm.worlds.scene_hallucination()(policy.generate(prompts, list(range(len(prompts))), temperature=0), prompts)
        cells = [
            float(ratio[::2].mean()),
            float(ratio[1::2].mean()),
            early(policy, prompts),
            metrics["length"],
            metrics["chair_s"],
            metrics["recall"],
        ]
        lines.append(
            f"| `{name}` | {step} | {cells[0]:+.1f} | {cells[1]:+.1f} | {cells[2]:.3f} | {cells[3]:.1f} | {cells[4]:.3f} | {cells[5]:.3f} |"
        )
    return lines


def main() -> None:
    """Prints a table."""
    takes = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    takes.add_argument("recipes", nargs="+")
    takes.add_argument("--seeds", type=int, default=3)
    takes.add_argument("--runs", type=Path, default=Path("runs") / "digit_scenes")
    takes.add_argument("--silence", action="store_true")
    call = takes.parse_args()
    torch.set_num_threads(1)
    if call.silence:
        print("| method | step | better, nats | worse, nats | ends early | words | CHAIR_s | recall |\n|---|---|---|---|---|---|---|---|")
        for name in call.recipes:
            print("\n".join(silence(name, call.runs)), flush=True)
        return
    print(f"| recipe | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name in ["base", *call.recipes]:
        if name == "base":
            policy = build_part(load(f"digit_scenes/{call.recipes[0]}"), "policy")
            print(row("before training", [{**numbers(policy), "train_seconds": 0}]), flush=True)
        else:
            print(row(f"`{name}`", [measured(finished(name, seed, call.runs)) for seed in range(call.seeds)]), flush=True)


if __name__ == "__main__":
    main()
