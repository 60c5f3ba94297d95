"""Shows that what should change nothing changes nothing: the same short runs by another revision's code and by this tree's, compared.

python scripts/unchanged.py --base main                                  # five configs of small worlds, 5 steps each, both trees
python scripts/unchanged.py --base 98b154a --keep runs/base text/grpo    # one; the base's runs stay, and are not made again

Each tree trains its own configs/NAME.yaml with its own package, by the same interpreter on the same number of threads, evaluated before
the first step and after the last. Compared are every number that both trees log for a step, times and memory aside, and the trained
tensors of the last checkpoint. Two numbers are equal where they differ by at most the tolerance times the larger one (a tensor's: times
the largest number in the tensor), or by 1e-9. The same arithmetic in the same order gives 0; the tolerance of 1e-6 leaves room for a few
float32 sums in another order (6e-8 a rounding), not for another method. Kept runs are worth something only on the machine that made them.

Exit code: 0 where all is equal within the tolerance, 1 where something differs or does not run, 2 for a mistake in the call.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("digits/demo", "digits/lora", "text/grpo", "digit_scenes/grpo", "moving_digits/flow_grpo")

# How a tree spells what this script sets, told by a key that only configs of that spelling have at their top; newest first.
# A revision that spells it otherwise gets a line here, and nothing else changes.
SPELLINGS = {
    "run": {"steps": "steps", "every": "evaluation.every", "folder": "run.folder"},
    "name": {"steps": "steps", "every": "evaluation.every", "folder": "runs"},
}
UNREPEATABLE = ("seconds", "memory")  # parts of the names of numbers that two runs of the same code do not share
FLOOR = 1e-9  # what is closer than this is equal: half a rounding of a float32 near .02
SHOWN = 3  # lines on what is wrong with a config

Rows = Mapping[str, Mapping[str, float]]
Tensors = Mapping[str, torch.Tensor]


@dataclass
class Difference:
    """How far two runs are apart. ``largest``, ``relative``: the largest absolute and relative difference of a number that both log;
    ``tensor_largest``, ``tensor_relative``: of a trained tensor, relative to the largest number in it. ``wrong``: what is beyond the
    tolerance, a line each, in the order of the run. ``alone``: names of numbers that one tree logs, which is told and no failure."""

    rows: int = 0
    fields: set[str] = field(default_factory=set)
    largest: float = 0.0
    relative: float = 0.0
    tensors: int = 0
    tensor_largest: float = 0.0
    tensor_relative: float = 0.0
    alone: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


# ---- running


def unpacked(revision: str, folder: Path) -> None:
    """Puts the files of a revision of this repository into ``folder``; nothing of it is left in git's own folder."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")


def environment(tree: Path, threads: int) -> dict[str, str]:
    """Of a process that runs the package of ``tree`` on so many threads."""
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **counts, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}


def refuse_another_package(tree: Path, threads: int) -> None:
    """Errors: SystemExit where the package that a run in ``tree`` gets is not the one of ``tree``; a tree would be compared to itself."""
    command = [sys.executable, "-c", "import mmalign; print(mmalign.__file__)"]
    done = subprocess.run(command, cwd=tree, env=environment(tree, threads), capture_output=True, text=True, check=True)
    if not Path(done.stdout.strip()).resolve().is_relative_to(tree.resolve()):
        raise SystemExit(f"{tree}: runs {done.stdout.strip()}, takes the package of that tree")


def overrides(config: Mapping[str, Any], *, steps: int, folder: Path) -> list[str]:
    """``key=value`` as the tree of this config spells them. Errors: ValueError for a spelling that is not in ``SPELLINGS``."""
    for mark, keys in SPELLINGS.items():
        if mark in config:
            return [f"{keys[name]}={value}" for name, value in (("steps", steps), ("every", steps), ("folder", folder))]
    raise ValueError(f"spells its settings as no line of SPELLINGS: got the keys {', '.join(config)}, takes {' or '.join(SPELLINGS)}")


def finished(folder: Path) -> list[Path]:
    """The runs below a folder that have ended by themselves: their summary, which is written last, says so."""
    summaries = folder.glob("*/summary.json")
    return [file.parent for file in summaries if json.loads(file.read_text(encoding="utf-8"))["status"] != "interrupted"]


def trained(tree: Path, name: str, folder: Path, *, steps: int, threads: int) -> Path:
    """The folder of the finished run of a config of ``tree``, made below ``folder`` unless it is there.

    Errors: ValueError where the config is missing or its run fails, with the last line that it wrote.
    """
    if not finished(folder):
        shutil.rmtree(folder, ignore_errors=True)
        file = tree / "configs" / f"{name}.yaml"
        if not file.is_file():
            raise ValueError(f"no configs/{name}.yaml")
        settings = overrides(yaml.safe_load(file.read_text(encoding="utf-8")), steps=steps, folder=folder)
        command = [sys.executable, "-m", "mmalign", "train", str(file), *settings]
        done = subprocess.run(command, cwd=tree, env=environment(tree, threads), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return finished(folder)[0]


# ---- comparing


def rows_of(run: Path) -> dict[str, dict[str, float]]:
    """``train 3`` -> name -> number of that row of ``metrics.jsonl``; null, which stands for a number that is not finite, becomes NaN."""
    rows = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        where = f"{row.pop('phase')} {row.pop('step')}"
        kept = {name: value for name, value in row.items() if not any(part in name for part in UNREPEATABLE)}
        numbers = {name: math.nan if value is None else value for name, value in kept.items()}
        rows[where] = {name: value for name, value in numbers.items() if isinstance(value, (int, float))}
    return rows


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of a run's last checkpoint by name; one that is stored under another's name is found under both."""
    last = max((run / "checkpoints").glob("step_*"))
    with safe_open(str(last / "trained.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the handle is not a dict)
        same = json.loads((file.metadata() or {}).get("same", "{}"))
    return {**tensors, **{name: tensors[owner] for name, owner in same.items()}}


def apart(old: torch.Tensor, new: torch.Tensor) -> tuple[float, float]:
    """The largest difference of two tensors of one shape, and how large it is beside the largest number in them.

    A NaN is equal to a NaN, and infinitely far from a number.
    """
    old, new = old.double(), new.double()
    difference = torch.where(old.isnan() & new.isnan() | (old == new), 0.0, (old - new).abs()).nan_to_num(math.inf)
    largest = float(difference.max()) if difference.numel() else 0.0
    scale = float(torch.maximum(old.abs(), new.abs()).nan_to_num(0.0).max()) if largest else 1.0
    return largest, largest / (scale or 1.0)


def compare_rows(difference: Difference, base: Rows, here: Rows, tolerance: float) -> None:
    """Adds every number of two logs, each as in ``rows_of``. A row of one of them alone is wrong."""
    if lost := [where for where in {**base, **here} if where not in base or where not in here]:
        difference.wrong.append(f"rows of one tree only: {', '.join(lost)}")
    for where in (where for where in base if where in here):
        difference.rows += 1
        phase = where.split()[0]
        for name in {**base[where], **here[where]}:
            if name not in base[where] or name not in here[where]:
                difference.alone.append(f"{phase} {name} ({'here' if name in here[where] else 'base'})")
                continue
            old, new = base[where][name], here[where][name]
            largest, relative = apart(torch.tensor(old, dtype=torch.float64), torch.tensor(new, dtype=torch.float64))
            difference.fields.add(f"{phase} {name}")
            difference.largest, difference.relative = max(difference.largest, largest), max(difference.relative, relative)
            if largest > FLOOR and relative > tolerance:
                difference.wrong.append(f"{where}: {name} was {old!r}, is {new!r}")
    difference.alone = list(dict.fromkeys(difference.alone))
    if not difference.fields:
        difference.wrong.append("there is no number that both trees log")


def compare_tensors(difference: Difference, base: Tensors, here: Tensors, tolerance: float) -> None:
    """Adds every trained tensor of two runs, each as in ``tensors_of``. A tensor of one of them alone is wrong."""
    if lost := sorted(base.keys() ^ here.keys()):
        difference.wrong.append(
            f"trained tensors of one tree only: {len(lost)}, such as {lost[0]} ({'here' if lost[0] in here else 'base'})"
        )
    for name in (name for name in base if name in here):
        difference.tensors += 1
        if base[name].shape != here[name].shape:
            difference.wrong.append(f"{name}: the trained tensor was {list(base[name].shape)}, is {list(here[name].shape)}")
            continue
        largest, relative = apart(base[name], here[name])
        difference.tensor_largest, difference.tensor_relative = (
            max(difference.tensor_largest, largest),
            max(difference.tensor_relative, relative),
        )
        if largest > FLOOR and relative > tolerance:
            difference.wrong.append(f"{name}: the trained tensor is {largest:.3g} away, {relative:.3g} of its largest number")


# ---- telling

HEAD = (
    f"{'':<25} | {'numbers logged':^35} | {'trained tensors':^28} |\n"
    f"{'config':<25} | {'rows':>4} {'fields':>6} {'largest':>11} {'relative':>11} | {'n':>6} {'largest':>10} {'relative':>10} | verdict"
)


def described(name: str, difference: Difference) -> str:
    """A row of the table, and below it the first of what is wrong."""
    numbers = f"{difference.rows:>4} {len(difference.fields):>6} {difference.largest:>11.3g} {difference.relative:>11.3g}"
    tensors = f"{difference.tensors:>6} {difference.tensor_largest:>10.3g} {difference.tensor_relative:>10.3g}"
    lines = [f"{name:<25} | {numbers} | {tensors} | {f'DIFFERS ({len(difference.wrong)})' if difference.wrong else 'equal'}"]
    lines += [f"    {wrong}" for wrong in difference.wrong[:SHOWN]]
    if difference.alone:
        lines.append(f"    logged by one tree only, not compared: {', '.join(difference.alone)}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """The call, ``base`` as the whole hash of its revision. Errors: exit code 2 and one line."""
    takes = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    takes.add_argument("configs", nargs="*", metavar="CONFIG", help=f"short names of configs/; default: {' '.join(CONFIGS)}")
    takes.add_argument("--base", required=True, metavar="REV", help="the revision that this tree is compared with")
    takes.add_argument("--steps", type=int, default=5, help="default 5")
    takes.add_argument("--threads", type=int, default=1, help="of each run; default 1")
    takes.add_argument("--jobs", type=int, default=2, help="runs at a time; default 2")
    takes.add_argument("--tolerance", type=float, default=1e-6, help="relative; default 1e-6")
    takes.add_argument("--keep", type=Path, metavar="DIR", help="where the base's runs stay, and are used again")
    call = takes.parse_args()
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{call.base}^{{commit}}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not commit:
        takes.error(f"--base: got {call.base!r}, takes a revision of {ROOT}")
    if missing := [name for name in call.configs if not (ROOT / "configs" / f"{name}.yaml").is_file()]:
        takes.error(f"no configs/{missing[0]}.yaml; takes a short name such as {CONFIGS[0]}")
    if low := [name for name in ("steps", "threads", "jobs") if getattr(call, name) < 1]:
        takes.error(f"--{low[0]}: got {getattr(call, low[0])}, takes 1 or more")
    call.base, call.configs = commit, list(dict.fromkeys(call.configs or CONFIGS))
    return call


def compare(call: argparse.Namespace, place: Path) -> int:
    """Runs and compares in an empty folder, prints the table, and returns how many configs differ."""
    base = place / "base"
    unpacked(call.base, base)
    for tree in (base, ROOT):
        refuse_another_package(tree, call.threads)
    kept = (call.keep or place / "kept").resolve() / f"{call.base[:12]}_{call.steps}_steps_{call.threads}_threads"

    def run(tree: Path, runs: Path, name: str) -> Path:
        return trained(tree, name, runs / name, steps=call.steps, threads=call.threads)

    differ = 0
    with ThreadPoolExecutor(call.jobs) as pool:
        trees = {"base": (base, kept), "here": (ROOT, place / "here")}
        runs = {name: {side: pool.submit(run, *tree, name) for side, tree in trees.items()} for name in call.configs}
        for name, sides in runs.items():
            errors = {side: future.exception() for side, future in sides.items()}
            difference = Difference(wrong=[f"{side}: {error}" for side, error in errors.items() if isinstance(error, ValueError)])
            if not difference.wrong:
                old, new = (future.result() for future in sides.values())
                compare_rows(difference, rows_of(old), rows_of(new), call.tolerance)
                compare_tensors(difference, tensors_of(old), tensors_of(new), call.tolerance)
            differ += bool(difference.wrong)
            print(described(name, difference), flush=True)
    return differ


def main() -> int:
    """The exit code."""
    call = arguments()
    print(f"base {call.base[:12]} and this tree, {call.steps} steps, threads per run: {call.threads}; equal is within {call.tolerance:g}")
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as place:
        differ = compare(call, Path(place))
    print(f"{len(call.configs) - differ} of {len(call.configs)} are equal")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
