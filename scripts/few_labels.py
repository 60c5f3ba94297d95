"""Reward models of few labels: what a contrastive term and MetaRM add to plain Bradley-Terry, where labels are of and where they are not.

python scripts/few_labels.py                            # 3 seeds of every method, under half a minute a run on a quiet core
python scripts/few_labels.py plain metarm-0.05 --seeds 5   # some of them

Pairs of the text world's sentences, of which the plainer one is better. Labels are of what the base writes; accuracy is measured on fresh
pairs of these (held out), and on pairs of what a policy writes that has moved to the reward: the best of 8 samples of the base beside the
best of 8 others (shifted), which differ less. MetaRM is shown the second kind of pairs, of other prompts, without labels. Every method has
the same labels, as many of them at a step, and as many steps. A run that is finished under --runs is not made again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.report.read import read
from mmalign.runs.trained import trained

STEPS, LABELS, UNLABELLED, BEST_OF, PROTOTYPES = 80, 32, 16, 8, 8
RATES = {"metarm-0.05": 0.05, "metarm-0.5": 0.5}
WEIGHTS = {"contrastive-0.1": 0.1}
METHODS = ("plain", *WEIGHTS, *RATES)


def moved_pairs(prompts: int, offset: int, seed: int, *, groups: int = 1) -> list[Pair]:
    """Of each prompt, ``groups`` times, two answers of a policy that has moved to the reward, without ties."""
    base: Any = mm.policies.transformers(*mm.worlds.text(), max_completion=19)
    drawn = base.sample(mm.worlds.text_prompts(count=prompts, offset=offset), 2 * BEST_OF * groups, torch.Generator().manual_seed(seed))
    scores, pairs = mm.worlds.text_plain()(drawn.outputs, drawn.prompts).tolist(), list[Pair]()
    for start in range(0, len(scores), 2 * BEST_OF):
        halves = (range(start, start + BEST_OF), range(start + BEST_OF, start + 2 * BEST_OF))
        first, second = (
            max((row for row in half if drawn.outputs[row].endswith(".")), key=scores.__getitem__, default=-1) for half in halves
        )
        if first >= 0 and second >= 0 and scores[first] != scores[second]:
            better, worse = sorted((first, second), key=scores.__getitem__, reverse=True)
            pairs.append(Pair(drawn.prompts[start], drawn.outputs[better], drawn.outputs[worse], 1.0, f"moved {len(pairs)}"))
    return pairs


def labelled_pairs(prompts: int, offset: int, seed: int) -> list[Pair]:
    """Of the base, without ties."""
    return [pair for pair in mm.worlds.text_pairs(prompts=prompts, groups=2, offset=offset, seed=seed) if pair.strength == 1]


def run_of(name: str, seed: int, folder: Path, pairs: list[Pair], moved: list[Pair], held: list[Pair]) -> Path:
    """A finished run of a method, of the small model."""
    path = folder / f"{name}-{seed}"
    if not path.is_dir() or read(path).summary.get("steps") != STEPS:
        reader: Any = mm.policies.transformers(*mm.worlds.text(model="small"), max_completion=24)
        records: Any = pairs
        method, policy, rows = mm.methods.bradley_terry(), mm.policies.scorer(reader), LABELS
        if name in RATES:
            method, rows = mm.methods.meta_reward(rate=RATES[name]), LABELS + UNLABELLED
            records = mm.data.mixture(
                {"labelled": pairs, "moved": mm.data.unlabelled(moved)}, weights={"labelled": LABELS, "moved": UNLABELLED}
            )
        if name in WEIGHTS:
            names = ["score", *(f"{view}{number}" for view in "ab" for number in range(PROTOTYPES))]
            policy = mm.policies.scorer(mm.policies.two_views(reader), head=mm.heads.prototypes(), scores=names)
            method = mm.methods.bradley_terry_contrastive(prototypes=PROTOTYPES, weight=WEIGHTS[name])
        done = mm.offline(
            policy, records, method, steps=STEPS, batch=mm.RecordBatch(records=rows, micro_rows=2 * rows),
            optimizer=mm.adamw(rate=1e-3, warmup=5), evaluation=mm.Evaluation(every=STEPS, records=held),
            run=mm.RunSettings(name=path.name, folder=str(folder), seed=seed, trackers=(), checkpoint_every=1000),
        )  # fmt: skip
        if done.summary["status"] == "interrupted":
            raise SystemExit(f"{path.name}: interrupted, so it has no row; remove {path} and start again")
    return path


def right(path: Path, pairs: Sequence[Pair]) -> float:
    """Share of the pairs whose better answer has the higher score, half of a tie."""
    policy: Any = trained(str(path)).policy()
    prompts = [pair.prompt for pair in pairs]
    better, worse = (policy.score(prompts, [getattr(pair, side) for pair in pairs])[:, 0] for side in ("first", "second"))
    return float(((better > worse).double() + (better == worse).double() / 2).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(METHODS)}; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"))
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in METHODS]:
        parser.error(f"got {unknown[0]!r}, takes {', '.join(METHODS)}")
    torch.set_num_threads(1)
    held, shifted = labelled_pairs(96, 256, 0), moved_pairs(96, 256, 0, groups=4)
    seeds = range(given.seeds)
    sets = [(labelled_pairs(64, 0, 1 + seed), moved_pairs(160, 64, 1 + seed)) for seed in seeds]
    sizes = ", ".join(f"{len(labels)} and {len(moved)}" for labels, moved in sets)
    print(f"{sizes} pairs with labels and without, {len(held)} held out, {len(shifted)} shifted")
    print("| method | held out, by seed | mean | spread | shifted, by seed | mean | spread |\n" + "|---" * 7 + "|")
    for name in given.names or METHODS:
        paths = [run_of(name, seed, given.runs, *sets[seed], held[:32]) for seed in seeds]
        cells = [name]
        for pairs in (held, shifted):
            shares = [right(path, pairs) for path in paths]
            spread = stdev(shares) if len(shares) > 1 else float("nan")
            cells += [", ".join(f"{share:.3f}" for share in shares), f"{mean(shares):.3f}", f"{spread:.3f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
