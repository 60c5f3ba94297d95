"""What the scripts beside this one measure with: turns, processor time, ranges, allocations, counted work, and how a table is written.

Seconds are of paired runs: all sides do one run each, in an order that turns round from round to round, so that what else the machine
does meets all of them; ratios are of runs of one round. Beside the clock stands the processor time of this process with all of its
threads, which others on the machine lengthen less. Bytes are counted from every allocation and release of torch on the CPU. Operations
are those of matrix products and convolutions, counted by torch's ``FlopCounterMode`` while a real pass runs.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

Run = Callable[[], Any]


class Seconds(NamedTuple):
    """Of one run: by the clock, and of the processor."""

    wall: float
    cpu: float


def timed(run: Run) -> Seconds:
    """One run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def in_turn(sides: Mapping[str, Run], rounds: int) -> dict[str, list[Seconds]]:
    """``rounds`` runs of each side, in turn; one of each before them is not counted."""
    measured: dict[str, list[Seconds]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            seconds = timed(sides[name])
            if number:
                measured[name].append(seconds)
    return measured


def spread(values: Iterable[float], form: str = ".3g") -> str:
    """Median, and in brackets the least and the most."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):{form}} ({ordered[0]:{form}} to {ordered[-1]:{form}})"


def ratios(one: Sequence[Seconds], other: Sequence[Seconds]) -> tuple[list[float], list[float]]:
    """``one / other`` of each round: by the clock, and by processor time."""
    pairs = list(zip(one, other, strict=True))
    return [a.wall / b.wall for a, b in pairs], [a.cpu / b.cpu for a, b in pairs]


def allocated(run: Run) -> int:
    """The most bytes that a run holds at one time, above those before it: from every allocation of torch on the CPU."""
    with allocations() as found:
        run()
    return found()


@contextmanager
def allocations() -> Iterator[Callable[[], int]]:
    """Notes every allocation and release of torch on the CPU while the block lasts; then answers with the most bytes held at one time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield lambda: _peak(profiled)


def _peak(profiled: Any) -> int:
    live = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def operations(run: Run) -> int:
    """Floating-point operations of a run's matrix products and convolutions. On a CPU attention is taken apart, so that they are seen."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    apart = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with apart, FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


class Calls:
    """How often a module runs, and how many rows it sees: with gradient, and without."""

    def __init__(self) -> None:
        self.number = self.with_gradient = self.without = 0

    @property
    def rows(self) -> int:
        return self.with_gradient + self.without


@contextmanager
def counted(module: torch.nn.Module, calls: Calls | None = None) -> Iterator[Calls]:
    """Counts the calls of a module while the block lasts."""
    calls = calls or Calls()

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        calls.number += 1
        if torch.is_grad_enabled():
            calls.with_gradient += len(inputs)
        else:
            calls.without += len(inputs)

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size between the two largest sizes, where what is constant weighs least."""
    (a, b), (c, d) = sizes[-2:], costs[-2:]
    return float(torch.tensor(d / c).log() / torch.tensor(b / a).log())


def machine() -> str:
    """Processor, threads and versions, in a line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if platform.system() != "Windows" else ""
    versions = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    level = torch.backends.cpu.get_cpu_capability()
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {level}{load}; Python {platform.python_version()}, {versions}"
    )


class Table:
    """A table of Markdown that is printed line by line, as it is measured."""

    def __init__(self, title: str, *columns: str):
        print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)

    def row(self, *cells: object) -> None:
        """One more line."""
        print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
