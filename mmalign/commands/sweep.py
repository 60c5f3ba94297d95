"""Runs of one config, or several, with some of their settings varied: trained in turn, tabulated, and drawn along their KL."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.commands._cells import Cell, Grid, grid
from mmalign.config import check, load
from mmalign.evaluation.overoptimisation_law import overoptimisation_law
from mmalign.evaluation.saturation_law import saturation_law
from mmalign.files import write_json, write_text
from mmalign.report.read import RunData, read
from mmalign.report.sweep import page
from mmalign.runs.folder import held
from mmalign.runs.progress import Interrupt, Progress, clock
from mmalign.types import UserError

UNFINISHED = ("running", "interrupted", "")
SEED = "run.seed"
NOT_SHARED = (SEED, "beta", "method.beta")  # axes over which runs share one law
CURVE = 60  # points of a law that is drawn


@dataclass(frozen=True)
class Swept:
    """path: the folder. table: what ``table.json`` holds. interrupted: by which signal, "" for none."""

    path: Path
    table: Mapping[str, Any]
    interrupted: str = ""

    @property
    def failed(self) -> int:
        """How many runs did not come to an end by themselves."""
        return sum(row["status"] == "failed" for row in self.table["rows"])

    @property
    def page(self) -> Path:
        """Of the sweep."""
        return self.path / "report.html"


def sweep(
    configs: Sequence[str], words: Sequence[str], *, out: str | Path, processes: Count = 1, sort: str | None = None,
    say: Callable[[str], None] = print,
) -> Swept:  # fmt: skip
    """Trains every combination of configs and values, each in a process of its own, and writes ``report.html`` and ``table.json``.

    Args:
        configs: files, or short names.
        words: ``key=value`` for all runs and ``key=a,b,c`` for one run each: ``method=dpo,ipo``, ``beta=.05,.1`` (of the method),
            ``run.seed=0,1,2``.
        out: the folder of all. The same sweep again trains what is not finished there, runs that have a checkpoint from that on, and may
            have more values; finished runs stay. A sweep with other settings is refused there.
        processes: runs at once, each with its share of the processors, and a GPU in turn.
        sort: the column that orders the table; by default the first judge, or else the first reward.
        say: where lines go.

    A run that fails is a row that says why, and the others go on. ``logs/NAME.log`` has what each run said.

    Errors: UserError before anything is trained for words that are none, for another sweep in ``out``, and where every run has a mistake
    in its config. Ctrl-C lets the runs that are at work save and end.
    """
    if processes < 1:
        raise UserError(f"--processes: got {processes}, takes 1 or more")
    asked, folder = grid(configs, words), Path(out).resolve()
    why = {cell.name: lines[0] for cell in asked.cells if (lines := check(load(cell.config, list(cell.words))))}
    if len(why) == len(asked.cells):
        raise UserError("\n".join(dict.fromkeys(why.values())))
    with held(folder, "sweeps"):
        _remember(folder, asked)
        waiting = [cell for cell in asked.cells if cell.name not in why and not _finished(folder / cell.name)]
        done = len(asked.cells) - len(waiting) - len(why)
        say(f"{len(asked.cells)} runs: {done} finished, {len(why)} with mistakes in their configs, {len(waiting)} to train")
        for name, line in why.items():
            say(f"{name}: {line}")
        ended, interrupted = _trained(folder, waiting, processes, say)
        table = _gathered(folder, asked, {**why, **ended}, sort)
        write_json(folder / "table.json", table)
        write_text(folder / "report.html", page(table))
    return Swept(folder, table, interrupted)


def _remember(folder: Path, asked: Grid) -> None:
    """Writes what the sweep is of. Errors: UserError where the folder has runs of another one."""
    file, now = folder / "sweep.json", {"fixed": asked.fixed, "configs": asked.digests, "axes": asked.axes}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["fixed"] != now["fixed"] or list(before["axes"]) != list(asked.axes):
            was = " ".join([*before["fixed"], *(f"{axis}={','.join(values)}" for axis, values in before["axes"].items())])
            raise UserError(f"--out: {folder} holds the sweep {was}; takes the same keys and fixed values, or another folder")
        if odd := next((name for name in asked.digests if before["configs"].get(name, asked.digests[name]) != asked.digests[name]), None):
            raise UserError(f"--out: {folder} holds runs of {odd} as it was before it was changed; takes another folder")
        now["configs"] = {**before["configs"], **asked.digests}
        now["axes"] = {axis: list(dict.fromkeys([*before["axes"][axis], *values])) for axis, values in asked.axes.items()}
    write_json(file, now)


def _finished(run: Path) -> bool:
    summary = run / "summary.json"
    try:
        return summary.is_file() and json.loads(summary.read_text(encoding="utf-8")).get("status", "") not in UNFINISHED
    except ValueError:  # torn
        return False


def _trained(folder: Path, waiting: Sequence[Cell], processes: int, say: Callable[[str], None]) -> tuple[dict[str, str], str]:
    """Runs what is waiting, ``processes`` at once; name -> why, of those that failed, and the signal that ended the sweep."""
    queue, at_work, why = list(waiting), dict[int, tuple[Cell, subprocess.Popen[bytes], float]](), dict[str, str]()
    told = False
    with ExitStack() as stack:
        progress, interrupt = stack.enter_context(Progress(len(waiting), every=len(waiting) + 1)), stack.enter_context(Interrupt())
        stack.callback(_killed, at_work)  # those that a second Ctrl-C leaves
        while at_work or (queue and not interrupt.interrupted):
            for slot in range(processes):
                if queue and slot not in at_work and not interrupt.interrupted:
                    cell = queue.pop(0)
                    at_work[slot] = cell, _started(folder, cell, slot, processes), time.monotonic()
            if interrupt.interrupted and not told:
                told = True
                for _, process, _ in at_work.values():
                    process.send_signal(signal.SIGTERM)  # it finishes its step and saves
            for slot, (cell, process, began) in list(at_work.items()):
                if process.poll() is None:
                    continue
                del at_work[slot]
                ending = _ending(folder, cell, process.returncode)
                if ending:
                    why[cell.name] = ending
                count, seconds = len(waiting) - len(queue) - len(at_work), clock(time.monotonic() - began)
                progress.update(count, {})
                progress.say(
                    f"{count}/{len(waiting)}  {cell.name}: {f'failed: {ending}' if ending else _result(folder / cell.name)}  ({seconds})"
                )
            time.sleep(0.05 if at_work else 0)
        return why, interrupt.name


def _killed(at_work: Mapping[int, tuple[Cell, subprocess.Popen[bytes], float]]) -> None:
    for _, process, _ in at_work.values():
        process.kill()


def _started(folder: Path, cell: Cell, slot: int, processes: int) -> subprocess.Popen[bytes]:
    """A process that trains a cell, its words in its log; in a session of its own, so that Ctrl-C reaches the sweep alone."""
    import torch

    run, environment = folder / cell.name, {**os.environ, "PYTHONUNBUFFERED": "1"}
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        if torch.cuda.is_available() and "CUDA_VISIBLE_DEVICES" not in environment:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    places = [f"run.name={json.dumps(cell.name)}", f"run.folder={json.dumps(str(folder))}"]
    resume = ["--resume"] if (run / "config.yaml").is_file() else []
    log = folder / "logs" / f"{cell.name}.log"
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "mmalign", "train", cell.config, *cell.words, *places, *resume]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def _ending(folder: Path, cell: Cell, code: int) -> str:
    """Why a run has no end, in a line; "" where it has one."""
    if _finished(folder / cell.name):
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = (folder / "logs" / f"{cell.name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else f"ended with {code} and said nothing"


def _result(run: Path) -> str:
    data = read(run)
    last = data.evals[-1] if data.evals else {}
    names = [name for name in [*data.judges, *data.rewards, "kl"] if _number(last.get(name)) is not None]
    return "  ".join(f"{name} {last[name]:.3f}" for name in names)


def _gathered(folder: Path, asked: Grid, why: Mapping[str, str], sort: str | None) -> dict[str, Any]:
    """What the folder holds of every cell. Errors: UserError for a column that there is not."""
    runs = {cell.name: read(folder / cell.name) for cell in asked.cells if (folder / cell.name / "config.yaml").is_file()}
    judges = list(dict.fromkeys(name for run in runs.values() for name in run.judges))
    rewards = list(dict.fromkeys(name for run in runs.values() for name in run.rewards))
    numbers = [*judges, *rewards]
    rows = [_row(cell, runs.get(cell.name), why.get(cell.name), numbers) for cell in asked.cells]
    columns = [*asked.axes, "status", *numbers, *(f"best {name}" for name in judges), "kl", "seconds"]
    column = sort or (numbers[0] if numbers else "status")
    if column not in columns:
        raise UserError(f"--sort: got {column!r}, takes {', '.join(columns)}")
    rows.sort(key=lambda row: _order(row.get(column)))
    return {
        "name": folder.name, "axes": list(asked.axes), "columns": columns, "sorted_by": column, "judges": judges, "rewards": rewards,
        "rows": rows, "means": _means(asked, rows, numbers), "laws": {name: _laws(asked, runs, name) for name in numbers},
        "saturations": _saturations(asked, rows, numbers),
    }  # fmt: skip


def _row(cell: Cell, run: RunData | None, why: str | None, numbers: Sequence[str]) -> dict[str, Any]:
    """A run in a line: its values, how it ended, and what its summary says."""
    summary = {} if run is None else run.summary
    unended = "waiting" if run is None else "unfinished"
    status = str(summary.get("status") or unended) if why is None else "failed"
    row: dict[str, Any] = {"name": cell.name, **cell.values, "status": status, "why": why or "", "kl": _number(summary.get("kl"))}
    for name in numbers:
        row[name], row[f"{name} se"] = _number(summary.get(f"{name}_after")), _number(summary.get(f"{name}_se_after"))
        known = [row_ for row_ in ([] if run is None else run.evals) if _number(row_.get(name)) is not None]
        best = max(known, key=lambda one: float(one[name]), default={})
        row[f"best {name}"], row[f"best {name} kl"] = _number(best.get(name)), _number(best.get("kl"))
    return {**row, "seconds": _number(summary.get("train_seconds"))}


def _means(asked: Grid, rows: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> list[dict[str, Any]]:
    """Over seeds, where there are several: mean and standard deviation of each number, and of how many runs."""
    if SEED not in asked.axes:
        return []
    others = [axis for axis in asked.axes if axis != SEED]
    groups = dict[tuple[str, ...], list[Mapping[str, Any]]]()
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in others), []).append(row)
    means = []
    for key, several in groups.items():
        mean: dict[str, Any] = dict(zip(others, key, strict=True))
        for name in [*numbers, "kl"]:
            known = [row[name] for row in several if row[name] is not None]
            mean[name] = statistics.fmean(known) if known else None
            mean[f"{name} sd"] = statistics.stdev(known) if len(known) > 1 else None
        means.append({**mean, "runs": sum(row["status"] != "failed" for row in several), "of": len(several)})
    return means


def _laws(asked: Grid, runs: Mapping[str, RunData], name: str) -> dict[str, Any]:
    """group -> the path of each of its runs, ``[sqrt(KL), gain over its first evaluation]``, and the law of all of them."""
    shared = [axis for axis in asked.axes if axis not in NOT_SHARED]
    laws: dict[str, Any] = {}
    for cell in asked.cells:
        path = _path(runs[cell.name], name) if cell.name in runs else []
        if len(path) > 1:
            group = ", ".join(cell.values[axis] for axis in shared) or "all runs"
            laws.setdefault(group, {"paths": {}})["paths"][cell.name] = path
    for group in laws.values():
        points = [(nats, gain, run) for run, path in group["paths"].items() for nats, gain in path]
        law = overoptimisation_law(*zip(*points, strict=True))
        group["paths"] = {run: [[math.sqrt(nats), gain] for nats, gain in path] for run, path in group["paths"].items()}
        group["law"] = {**law._asdict(), **{part: getattr(law, part)._asdict() for part in ("alpha", "beta", "peak", "best")}}
        group["law"]["turns"] = law.turns
        drawn = [law.furthest * (place / CURVE) ** 2 for place in range(CURVE + 1)]
        group["curve"] = [] if math.isnan(law.alpha.value) else [[math.sqrt(nats), law(nats)] for nats in drawn]
    return laws


def _saturations(asked: Grid, rows: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> list[dict[str, Any]]:
    """The law of data of each number, for every axis that counts records (``records.*``, ``records.of.*``), group by group."""
    found = list[dict[str, Any]]()
    for axis, values in asked.axes.items():
        if not axis.startswith("records.") or len(values) < 3 or any(_order(value)[0] for value in values):
            continue
        groups = dict[str, list[Mapping[str, Any]]]()
        for row in rows:
            groups.setdefault(", ".join(row[other] for other in asked.axes if other not in (axis, SEED)) or "all runs", []).append(row)
        for name, (group, several) in ((name, item) for name in numbers for item in groups.items()):
            known = [(float(row[axis]), row[name]) for row in several if row[name] is not None]
            if len({count for count, _ in known}) > 2:
                law = saturation_law(*zip(*known, strict=True))
                found.append({"axis": axis, "number": name, "group": group, **law._asdict()})
    return found


def _path(run: RunData, name: str) -> list[tuple[float, float]]:
    """(KL, gain) of every evaluation; none without a number before training."""
    first = _number(run.evals[0].get(name)) if run.evals else None
    pairs = [(_number(row.get("kl")), _number(row.get(name))) for row in run.evals]
    return [(max(kl, 0.0), value - first) for kl, value in pairs if first is not None and kl is not None and value is not None]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


def _order(value: Any) -> tuple[int, float, str]:
    """The largest numbers first, then words, what is missing last."""
    if value is None:
        return 2, 0.0, ""
    if isinstance(value, str) and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value):
        return 1, 0.0, value
    return 0, -float(value), ""
