"""What a run says while it goes: a bar with reward, KL and time left; and signals that end it after its step, with all of it saved."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, TextIO

from mmalign.arguments.environment import masked

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def clock(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def numbers(metrics: Mapping[str, Any]) -> str:
    """The two numbers worth a place in a line: ``reward 0.512  KL 1.3 nats``; a missing one is left out."""
    shown = []
    if isinstance(metrics.get("reward"), (int, float)):
        shown.append(f"reward {metrics['reward']:.3f}")
    if isinstance(metrics.get("kl"), (int, float)):
        shown.append(f"KL {metrics['kl']:.3g} nats")
    return "  ".join(shown)


class Progress:
    """A bar on a terminal; elsewhere one line every ``every`` steps.

    A terminal or a pipe that is gone costs its lines, and nothing else. total: the step at which the run ends. start: the step it
    continues from. stream: where to, standard output if None. quiet: says nothing, as all processes but the main one.
    """

    def __init__(self, total: int, *, start: int = 0, every: int = 10, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.total, self.start, self.every, self.quiet = total, start, max(1, every), quiet
        self._stream = sys.stdout if stream is None else stream
        self._bar: Any = None
        self._task: Any = None
        self._begin = time.monotonic()

    def __enter__(self) -> Progress:
        self._begin = time.monotonic()
        if self._stream.isatty() and not self.quiet:
            self._bar, self._task = _bar(self._stream, self.total, self.start)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
            self._bar = None

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """``step`` is done, with these metrics."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.update(self._task, completed=step, numbers=numbers(metrics))
        elif step % self.every == 0 or step >= self.total:
            done = max(1, step - self.start)
            left = (time.monotonic() - self._begin) / done * (self.total - step)
            self.say("  ".join(part for part in (f"step {step}/{self.total}", numbers(metrics), f"{clock(left)} left") if part))

    def say(self, line: str) -> None:
        """A line above the bar, without what was read of the environment; what the stream's encoding has no sign for is escaped."""
        if self.quiet:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        line = masked(line).encode(encoding, "backslashreplace").decode(encoding)
        with suppress(OSError):
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                print(line, file=self._stream, flush=True)


def _bar(stream: TextIO, total: int, start: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    bar = Bar(*columns, console=Console(file=stream))
    return bar, bar.add_task("", total=total, completed=start, numbers="")


class Interrupt:
    """Signals, politely: ``with Interrupt() as interrupt: ... if interrupt.interrupted: save and stop``.

    Ctrl-C, SIGTERM (of schedulers) and SIGHUP (a terminal that closes) set ``interrupted``, and print a line; a second Ctrl-C raises
    KeyboardInterrupt at once. A signal that was ignored (``nohup``) stays so, Ctrl-C aside. What handled them before does so again after
    the block. Does nothing outside the main thread, where signals do not arrive. name: of the signal that came first, "" for none.
    quiet: no line, as of several processes the main one alone says it.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.name = ""
        self._stream, self._quiet = stream, quiet
        self._before: dict[signal.Signals, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether one of them has come."""
        return bool(self.name)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            stops = [each for each in signal.Signals if each.name in SIGNALS]  # those of this system
            for each in stops:
                if each is signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN:
                    self._before[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        which = signal.Signals(number)
        if self.interrupted and which is signal.SIGINT:
            raise KeyboardInterrupt
        if self.interrupted:
            return
        self.name = which.name
        if self._quiet:
            return
        line = "finishing this step, then saving; Ctrl-C again to stop at once"
        with suppress(OSError, RuntimeError):  # the terminal may be gone, or be in the middle of a line
            print(f"\n{line}" if which is signal.SIGINT else f"\n{which.name}: {line}", file=self._stream or sys.stderr, flush=True)
