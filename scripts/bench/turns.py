"""Two libraries side by side: every side of a case a process of its own, which take turns, a step each.

What else the machine does meets all sides so. Seconds are medians over rounds after the first, by the clock and, for machines that do
something else too, of CPU. Memory is the highest resident size while training (VmHWM, reset before the first step) minus the resident
size before it, so that imports, weights and a reference's copy are in none. Linux alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

OURS = "mmalign"


class Case(Protocol):
    """What a table needs to know of a case. faster, memory: what is asked, times another side's; None where nothing is."""

    @property
    def tokens(self) -> int:
        """Of a step, every row with its prompt, shared or not."""

    @property
    def faster(self) -> float: ...

    @property
    def memory(self) -> float | None: ...


class Clock:
    """Seconds of each step, and memory from the first on. A step waits for its turn: a line from the process that asked."""

    def __init__(self) -> None:
        self.seconds: list[tuple[float, float]] = []
        self.before: float | None = None
        self.since = (0.0, 0.0)

    def start(self) -> None:
        """A step begins; before the first, the highest resident size so far is forgotten."""
        print("{}", flush=True)
        if not sys.stdin.readline():
            raise SystemExit("whoever asked is gone")
        if self.before is None:
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = resident("VmRSS")
        self.since = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        """A step is over."""
        self.seconds.append((time.perf_counter() - self.since[0], time.process_time() - self.since[1]))


def resident(line: str) -> float:
    """A line of this process's status, in MB. Linux alone."""
    match = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert match is not None
    return int(match.group(1)) / 1024


Side = Callable[[Any, int, Clock], None]


def side(run: Side, case: Case, steps: int) -> dict[str, float]:
    """One side of one case, in this process."""
    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(case, steps, clock)
    wall, cpu = (statistics.median(seconds) for seconds in zip(*clock.seconds[1:], strict=True))
    return {"seconds": wall, "cpu": cpu, "memory": resident("VmHWM") - (clock.before or 0.0)}


def interleaved(script: str, name: str, sides: Mapping[str, Side], steps: int) -> dict[str, dict[str, float]]:
    """All sides of one case, each a process, a step of each in turn."""
    running = {}
    for which in sides:
        command = [sys.executable, script, name, "--side", which, "--steps", str(steps)]
        pipes: dict[str, Any] = {"env": {**os.environ, "TOKENIZERS_PARALLELISM": "false"}, "text": True}
        running[which] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **pipes)
    answers = {which: answer(process, f"{name}, {which}") for which, process in running.items()}  # ready, all of them
    for _ in range(steps):
        for which, process in running.items():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            answers[which] = answer(process, f"{name}, {which}")
    return answers


def answer(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """The next line of JSON: empty where the process waits for its turn."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(('{"', "{}")):  # a trainer says things of its own
            numbers: dict[str, float] = json.loads(line)
            return numbers
    raise SystemExit(f"{what}: ended with {process.wait()}")


def main(doc: str, script: str, cases: Mapping[str, Case], sides: Mapping[str, Side]) -> None:
    """The table of a script, or with ``--side`` one of its lines as JSON."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*cases, []], help="all by default")
    parser.add_argument("--steps", type=int, default=4, help="of each side, the first of which does not count")
    parser.add_argument("--side", choices=sides, help="one side alone, in this process, a step for every line it is sent")
    args = parser.parse_args()
    names = args.cases or list(cases)
    if args.side:
        print(json.dumps(side(sides[args.side], cases[names[0]], args.steps)), flush=True)
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.steps - 1} steps timed")
    print(f"{'case':14} {'side':10} {'tokens/s':>9} {'CPU s':>7} {'MB':>6}   mmalign: {'faster':>6} {'by CPU':>7} {'memory':>7}   asked")
    for name in names:
        case, answers = cases[name], interleaved(script, name, sides, args.steps)
        own = answers[OURS]
        for which, one in answers.items():
            ratios = f"{one['seconds'] / own['seconds']:6.2f}x {one['cpu'] / own['cpu']:6.2f}x {own['memory'] / one['memory']:7.2f}"
            wanted = f"{case.faster:g}x" + (f", {case.memory:g}" if case.memory else "")
            beside = f"            {ratios}   {wanted}" if one is not own else ""
            print(f"{name:14} {which:10} {case.tokens / one['seconds']:9.0f} {one['cpu']:7.2f} {one['memory']:6.0f}{beside}", flush=True)
