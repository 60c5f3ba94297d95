"""Where the time and the memory of a step go: every moment of it belongs to one part, so that the parts add up to the step."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

PARTS = ("rollout", "references", "rewards", "forward", "backward", "optimizer", "gather", "checkpoint", "evaluation", "other")
"""rollout: sampling, or encoding records. references: what they say of it. gather: telling the other processes, and waiting for them."""


class Profile:
    """The parts of a step; ``part`` inside of another takes its time away from that one.

    wanted: otherwise nothing is measured. clock: nanoseconds. On GPUs what has been asked of them is waited for where a part begins and
    ends, so that it counts where it was asked. A thread beside, in which rewards are asked (``batch.overlap``), counts where it is waited
    for.
    """

    def __init__(self, wanted: bool = False, *, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.wanted, self._clock = wanted, clock
        self._spent: dict[str, int] = {}
        self._open: list[str] = []
        self._mark = self._began = self._processor = 0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Of a step that has begun."""
        if not self._open:
            yield
            return
        self._turn()
        self._open.append(name)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def begin(self) -> None:
        """A step begins."""
        if self.wanted:
            self._spent, self._open = dict.fromkeys(PARTS, 0), ["other"]
            self._began = self._mark = self._now()
            self._processor = time.process_time_ns()
            _forget_peak()

    def end(self) -> dict[str, float]:
        """The step is over: seconds of every part, of all and of the ``processor``; bytes of ``memory`` and ``memory_gpu``."""
        if not self._open:
            return {}
        self._turn()
        self._open = []
        processor = time.process_time_ns() - self._processor
        times = {**self._spent, "step_seconds": self._mark - self._began, "processor": processor}
        return {**{name: spent / 1e9 for name, spent in times.items()}, **_peaks()}

    def _turn(self) -> None:
        """What has passed since the last turn is the part's that is open."""
        now = self._now()
        self._spent[self._open[-1]] += now - self._mark
        self._mark = now

    def _now(self) -> int:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return self._clock()


def of_all(processes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the processes of a step measured as one: means of times, the largest of memory.

    Of several, ``slowest`` is the one that worked longest, waiting (``gather``) aside, and ``slowest_work`` and ``least_work`` are how long
    the two ends took.
    """
    if not processes or not processes[0]:
        return {}
    row = {name: sum(one[name] for one in processes) / len(processes) for name in processes[0] if not name.startswith("memory")}
    row |= {name: max(one[name] for one in processes) for name in processes[0] if name.startswith("memory")}
    if len(processes) == 1:
        return row
    work = [one["step_seconds"] - one["gather"] for one in processes]
    return {**row, "slowest": float(work.index(max(work))), "slowest_work": max(work), "least_work": min(work)}


def _peaks() -> dict[str, float]:
    """The most memory that this process has had so far, and its GPU in this step, in bytes."""
    import torch

    peaks: dict[str, float] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        peaks["memory"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    if torch.cuda.is_initialized():
        peaks["memory_gpu"] = float(torch.cuda.max_memory_allocated())
    return peaks


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Of the steps of a log: every part with its seconds in a step, the mean, and its share of the step; the largest first."""
    whole = sum(float(row.get("step_seconds") or 0.0) for row in rows)
    if not whole:
        return []
    sums = {name: sum(float(row.get(name) or 0.0) for row in rows) for name in PARTS}
    parts = [(name, spent / len(rows), spent / whole) for name, spent in sums.items() if spent]
    return sorted(parts, key=lambda part: -part[1])
