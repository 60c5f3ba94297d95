"""Trains every config of a small world, and writes what each method gained and what it cost as a table beside them.

python scripts/compare_methods.py text                        # all of configs/text, about half a minute each; writes its README.md
python scripts/compare_methods.py text dpo ipo grpo --seeds 3 --runs runs/text    # some, with three seeds; no README

A run that is finished under --runs is not made again, so an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from mmalign.lookup.dialects import explanation
from mmalign.rooms import find

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

HEAD = """\
# What each method does to {folder}

Made by `python scripts/compare_methods.py {folder}`: every config of this folder as it is, {seeds}, on one thread of a CPU.
Before training: {before}. The first column is what is trained on, or what pairs were ranked by; `gold` is a judge that no method sees.
The settings are the papers' or this folder's own and were not searched, so the order of the methods is no verdict on them: {steps} steps
on a tiny model show what a method does and what it trades. A judge's standard error is about {error:.2f}.

{worse} of {count} end with `{judge}` below where it was: at these settings they follow the first column further than it is worth.
"""


def trained(name: str, folder: str, seed: int, runs: Path) -> dict[str, Any]:
    """The summary of a run of ``folder/name``, which is made where it is not there; ``{"failed": why}`` where it cannot be.

    Runs of one seed stand side by side under the names that their configs give them, by which one may be another's reference.
    """
    run = str(OmegaConf.load(CONFIGS / folder / f"{name}.yaml").run.name)
    path = runs / str(seed) / run / "summary.json"
    if not path.is_file():
        command = [sys.executable, "-m", "mmalign", "train", f"{folder}/{name}", f"run.folder={runs / str(seed)}", f"run.seed={seed}"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"}
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def with_spread(values: list[float]) -> str:
    """A mean, with the spread over seeds where there are several."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def columns(summary: dict[str, Any]) -> list[str]:
    """The judged numbers of a run, the proxy first."""
    first = [*summary["rewards"], *summary["judges"]]
    rest = [key.removesuffix("_after") for key in summary if key.endswith("_after") and "_se_" not in key]
    return [*first, *(key for key in rest if key not in first)]


def table(folder: str, summaries: dict[str, list[dict[str, Any]]]) -> str:
    """The page: a row a method, by the gold judge."""
    good = {name: runs for name, runs in summaries.items() if not any("failed" in run for run in runs)}
    some = next(iter(good.values()))[0]
    names = columns(some)
    judge = (some["judges"] or some["rewards"])[0]
    order = sorted(good, key=lambda name: -mean(run[f"{judge}_after"] for run in good[name]))
    before = ", ".join(f"{name} {some[f'{name}_before']:.3f}" for name in names)
    steps = sorted({str(run["steps"]) for runs in good.values() for run in runs})
    seeds = len(next(iter(good.values())))
    worse = sum(mean(run[f"{judge}_after"] for run in good[name]) < some[f"{judge}_before"] for name in good)
    lines = [
        HEAD.format(
            folder=folder, before=before, judge=judge, count=len(good), worse=worse, steps=" or ".join(steps),
            error=some[f"{judge}_se_after"],
            seeds="seed 0" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)",
        ),
        f"| method | what it is | {' | '.join(names)} | s |",
        f"|---|---|{'---|' * (len(names) + 1)}",
    ]  # fmt: skip
    for name in order:
        numbers = [with_spread([run[f"{column}_after"] for run in good[name]]) for column in names]
        seconds = mean(run["train_seconds"] for run in good[name])
        meaning = explanation(find("mmalign.methods", name)).meaning
        lines.append(f"| [`{name}`]({name}.yaml) | {meaning} | {' | '.join(numbers)} | {seconds:.0f} |")
    lines += [
        f"\n`{name}` failed: {next(run['failed'] for run in runs if 'failed' in run)}"
        for name, runs in summaries.items()
        if name not in good
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """The exit code: 0 where every run was finished."""
    takes = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    takes.add_argument("folder")
    takes.add_argument("methods", nargs="*")
    takes.add_argument("--seeds", type=int, default=1)
    takes.add_argument("--runs", type=Path)
    args = takes.parse_args()
    runs = (args.runs or Path("runs") / "methods" / args.folder).resolve()
    there = sorted(path.stem for path in (CONFIGS / args.folder).glob("*.yaml"))
    if odd := [name for name in args.methods or [args.folder] * (not there) if name not in there]:
        takes.error(f"no configs/{args.folder}/{odd[0]}.yaml; takes {', '.join(there) or 'a folder of configs/'}")
    names = args.methods or there
    work = [(name, seed) for name in names for seed in range(args.seeds)]
    summaries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for name, seed in tqdm(work, desc=args.folder):
        summaries[name].append(trained(name, args.folder, seed, runs))
        if "failed" in summaries[name][-1]:
            tqdm.write(f"{name}, seed {seed}: {summaries[name][-1]['failed']}")
    page = table(args.folder, summaries)
    if args.methods:
        print(page)
    else:
        (CONFIGS / args.folder / "README.md").write_text(page, encoding="utf-8")
    return int(any("failed" in run for several in summaries.values() for run in several))


if __name__ == "__main__":
    sys.exit(main())
