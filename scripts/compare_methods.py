"""Trains every config of a small world, and writes what each method gained and what it cost as a table beside them.

python scripts/compare_methods.py text                        # all of configs/text, about half a minute each; writes its README.md
python scripts/compare_methods.py text dpo ipo grpo --seeds 3 --runs runs/text    # some, with three seeds; no README
python scripts/compare_methods.py text --rates 0.3 1 3 --seeds 3    # each with a learning rate of its own, for one budget

With --rates, every method has the same budget: seed 0 at each multiple of its config's learning rate, then the other seeds at the one
where `gold` came out highest. The table is of the other seeds alone, which chose nothing.

A run that is finished under --runs is not made again, and one that was begun is resumed, so an interrupted call goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
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

Made by `python scripts/compare_methods.py {folder}{options}`: every config of this folder, {seeds}, on one thread of a CPU.
Before training: {before}. The first column is what is trained on, or what pairs were ranked by; `gold` is a judge that no method sees.
{settings}, so the order of the methods is no verdict on them:
{steps} steps on a tiny model show what a method does and what it trades. A judge's standard error is about {error:.2f}.

{worse} of {count} end with `{judge}` below where it was: at these settings they follow the first column further than it is worth.
"""

AS_THEY_ARE = "The settings are the papers' or this folder's own and were not searched"
TUNED = """\
The learning rate of each method is the one of {rates} times its config's at which seed 0 had the highest `{judge}`, which is no row here;
all other settings are the papers' or this folder's own"""


def trained(name: str, folder: str, seed: int, runs: Path, *, rate: float = 1.0) -> dict[str, Any]:
    """The summary of a run of ``folder/name``, which is made where it is not there; ``{"failed": why}`` where it cannot be.

    Runs of one seed stand side by side under the names that their configs give them, by which one may be another's reference; those with
    another learning rate, ``rate`` times the config's, in a folder of their own, and their references are those of the config's.
    """
    config: Any = OmegaConf.load(CONFIGS / folder / f"{name}.yaml")
    place = runs / str(seed) if rate == 1 else runs / f"rate_{rate:g}" / str(seed)
    path = place / str(config.run.name) / "summary.json"
    if not path.is_file():
        command = [sys.executable, "-m", "mmalign", "train", f"{folder}/{name}", f"run.folder={place}", f"run.seed={seed}"]
        command += [] if rate == 1 else [f"optimizer.rate={rate * config.optimizer.rate:g}"]
        command += ["--resume"] if path.parent.exists() else []
        for key, reference in config.get("references", {}).items():
            trained(str(reference["from"]).removeprefix(f"{folder}_"), folder, seed, runs)
            command.append(f"references.{key}.from={runs / str(seed) / reference['from']}")
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


def tuned(name: str, folder: str, rates: Sequence[float], seeds: int, runs: Path) -> tuple[float, list[dict[str, Any]]]:
    """The multiple of the learning rate at which seed 0 ends best by the first judge, and the summaries of the other seeds at it."""
    tried = {rate: trained(name, folder, 0, runs, rate=rate) for rate in rates}
    for rate, run in tried.items():
        if "failed" in run:
            tqdm.write(f"{name} at {rate:g} times its rate, which is not among those that were tried: {run['failed']}")
    done = {rate: run[f"{judge_of(run)}_after"] for rate, run in tried.items() if "failed" not in run}
    if not done:
        return rates[0], [tried[rates[0]]]
    best = max(done, key=lambda rate: done[rate])
    return best, [trained(name, folder, seed, runs, rate=best) for seed in range(1, seeds)]


def judge_of(run: dict[str, Any]) -> str:
    """What a run is compared by: its first judge, or its first reward where there is none."""
    return str((run["judges"] or run["rewards"])[0])


def table(
    folder: str, summaries: dict[str, list[dict[str, Any]]], *, rates: Sequence[float] = (), chosen: Mapping[str, float] | None = None
) -> str:
    """The page: a row a method, by the gold judge. rates, chosen: the multiples that were tried, and each method's, where there were."""
    good = {name: runs for name, runs in summaries.items() if not any("failed" in run for run in runs)}
    some = next(iter(good.values()))[0]
    names = columns(some)
    judge = judge_of(some)
    order = sorted(good, key=lambda name: -mean(run[f"{judge}_after"] for run in good[name]))
    before = ", ".join(f"{name} {some[f'{name}_before']:.3f}" for name in names)
    steps = sorted({str(run["steps"]) for runs in good.values() for run in runs})
    seeds = len(next(iter(good.values())))
    worse = sum(mean(run[f"{judge}_after"] for run in good[name]) < some[f"{judge}_before"] for name in good)
    lines = [
        HEAD.format(
            folder=folder, before=before, judge=judge, count=len(good), worse=worse, steps=" or ".join(steps),
            error=some[f"{judge}_se_after"],
            options=f" --rates {' '.join(f'{rate:g}' for rate in rates)} --seeds {seeds + 1}" if rates else "",
            seeds="one seed" if seeds == 1 else f"{seeds} seeds (mean ± standard deviation)",
            settings=TUNED.format(rates=", ".join(f"{rate:g}" for rate in rates), judge=judge) if rates else AS_THEY_ARE,
        ),
        f"| method | what it is |{' rate |' if chosen else ''} {' | '.join(names)} | s |",
        f"|---|---|{'---|' * (len(names) + 1 + bool(chosen))}",
    ]  # fmt: skip
    for name in order:
        numbers = [with_spread([run[f"{column}_after"] for run in good[name]]) for column in names]
        seconds = mean(run["train_seconds"] for run in good[name])
        meaning = explanation(find("mmalign.methods", name)).meaning
        rate = f" {chosen[name]:g} |" if chosen else ""
        lines.append(f"| [`{name}`]({name}.yaml) | {meaning} |{rate} {' | '.join(numbers)} | {seconds:.0f} |")
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
    takes.add_argument("--rates", type=float, nargs="+", default=[], help="multiples of each config's learning rate to choose among")
    takes.add_argument("--runs", type=Path)
    args = takes.parse_args()
    if args.rates and (args.seeds < 2 or min(args.rates) <= 0):
        takes.error(f"--rates {args.rates} --seeds {args.seeds}: takes multiples above 0, and two seeds or more: the first one chooses")
    runs = (args.runs or Path("runs") / "methods" / args.folder).resolve()
    there = sorted(path.stem for path in (CONFIGS / args.folder).glob("*.yaml"))
    if odd := [name for name in args.methods or [args.folder] * (not there) if name not in there]:
        takes.error(f"no configs/{args.folder}/{odd[0]}.yaml; takes {', '.join(there) or 'a folder of configs/'}")
    names = args.methods or there
    summaries: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, float] = {}
    for name in tqdm(names, desc=args.folder):
        if args.rates:
            chosen[name], summaries[name] = tuned(name, args.folder, args.rates, args.seeds, runs)
        else:
            summaries[name] = [trained(name, args.folder, seed, runs) for seed in range(args.seeds)]
        for failed in (run["failed"] for run in summaries[name] if "failed" in run):
            tqdm.write(f"{name}: {failed}")
    page = table(args.folder, summaries, rates=args.rates, chosen=chosen)
    if args.methods:
        print(page)
    else:
        (CONFIGS / args.folder / "README.md").write_text(page, encoding="utf-8")
    return int(any("failed" in run for several in summaries.values() for run in several))


if __name__ == "__main__":
    sys.exit(main())
