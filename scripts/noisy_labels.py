"""Reward models of labels of which one in four is flipped: which losses get more of the truth than plain Bradley-Terry.

python scripts/noisy_labels.py                                 # 3 seeds of every method, about half a minute a run on a quiet core
python scripts/noisy_labels.py plain "peer review" --seeds 5   # some of them

Pairs of the text world's sentences, of which the plainer one is better; a share of the training labels is turned round, another one for
each seed, and none of those that accuracy is measured on. The small model sees each record about six times,
as often as it takes to learn a wrong label by heart. A run that is finished under --runs is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.report.read import read
from mmalign.types import Method

FLIPPED, STEPS, EVERY = 0.25, 100, 25
METHODS: dict[str, tuple[Callable[[], Method], int]] = {
    "plain": (lambda: mm.methods.bradley_terry(), 1),
    "smoothed": (lambda: mm.methods.bradley_terry(smoothing=FLIPPED), 1),
    "unbiased": (lambda: mm.methods.bradley_terry(smoothing=FLIPPED, correction="unbiased"), 1),
    "likelihood": (lambda: mm.methods.bradley_terry(smoothing=FLIPPED, correction="likelihood"), 1),
    "plain, two bagged": (lambda: mm.methods.bradley_terry(bagging=0.7), 2),
    "peer review": (lambda: mm.methods.peer_review(dropped=FLIPPED, warmup=40), 2),
    "peer review, bagged": (lambda: mm.methods.peer_review(dropped=FLIPPED, warmup=40, bagging=0.7), 2),
}


def turned(pairs: list[Pair], share: float, seed: int) -> list[Pair]:
    """The same pairs, a share of which says the opposite."""
    wrong = torch.rand(len(pairs), generator=torch.Generator().manual_seed(seed)) < share
    return [pair._replace(strength=1 - pair.strength) if flip else pair for pair, flip in zip(pairs, wrong.tolist(), strict=True)]


def trained(name: str, seed: int, share: float, folder: Path, pairs: list[Pair], held: list[Pair]) -> tuple[float, float]:
    """Accuracy on the held-out truth at the end, and at its best evaluation."""
    run = f"{name.replace(' ', '_').replace(',', '')}-{share:g}-{seed}"
    if not (folder / run).is_dir() or read(folder / run).summary.get("steps") != STEPS:
        make, scores = METHODS[name]
        reader = mm.policies.transformers(*mm.worlds.text(model="small"), max_completion=24)
        done = mm.offline(
            mm.policies.scorer(reader, scores=[f"score {number}" for number in range(scores)]), turned(pairs, share, seed), make(),
            steps=STEPS, batch=mm.RecordBatch(records=32, micro_rows=64), optimizer=mm.adamw(rate=1e-3, warmup=5),
            evaluation=mm.Evaluation(every=EVERY, records=held),
            run=mm.RunSettings(name=run, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        if done.summary["status"] == "interrupted":
            raise SystemExit(f"{run}: interrupted, so it has no row; remove {folder / run} and start again")
    accuracies = [row["held_out/accuracy"] for row in read(folder / run).evals]
    return accuracies[-1], max(accuracies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(METHODS)}; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flipped", type=float, default=FLIPPED, help="share of the training labels")
    parser.add_argument("--runs", type=Path, default=Path("runs/noisy_labels"))
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in METHODS]:
        parser.error(f"got {unknown[0]!r}, takes {', '.join(METHODS)}")
    torch.set_num_threads(1)
    pairs = [pair for pair in mm.worlds.text_pairs(prompts=128) if pair.strength == 1]
    held = [pair for pair in mm.worlds.text_pairs(prompts=48, offset=256) if pair.strength == 1]
    print(f"{len(pairs)} pairs, {len(held)} held out")
    print("| method | accuracy at the end, by seed | mean | spread | best, mean |")
    print("|---|---|---|---|---|")
    for name in given.names or METHODS:
        ends, bests = zip(*(trained(name, seed, given.flipped, given.runs, pairs, held) for seed in range(given.seeds)), strict=True)
        spread = stdev(ends) if len(ends) > 1 else float("nan")
        shown = ", ".join(f"{end:.3f}" for end in ends)
        print(f"| {name} | {shown} | {mean(ends):.3f} | {spread:.3f} | {mean(bests):.3f} |", flush=True)


if __name__ == "__main__":
    main()
