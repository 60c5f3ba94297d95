"""Runs that are killed and resumed: do they end as the run that was left alone, to the byte?

A run of several processes has one of them killed, or all at once; the others have to end by themselves, and say why.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.distributed import forked
from mmalign.selftest.trials import contents, differing
from mmalign.types import UserError

TIMEOUT, PATIENCE = 30.0, 60.0
"""Seconds that processes of a run which is killed wait for each other, and that those left have, once one was killed, to end."""

HEARD = re.compile(r"(round \d+, [^:]+: )?process")
"""How words begin of a process that hears of another one's end; of rounds those of the stage."""

LONGEST = 600.0
"""Seconds that a run may take which nobody kills, and that its processes wait for each other."""

Train = Callable[..., Any]
"""``(root, resume=False)``: trains a run in ``root/run``, or goes on with it."""


class Kill(NamedTuple):
    """What became of one run. killed: whether it was, or had ended before. wrong: what is, "" for nothing."""

    killed: bool
    wrong: str


@dataclass
class Killed:
    """Runs of one kind that were killed: how many, how many of those ended as they should, and what was wrong of the others.

    seconds: that one takes which is left alone. late: had ended before they were killed.
    """

    name: str
    processes: int
    seconds: float = 0.0
    kills: int = 0
    identical: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, kill: Kill) -> None:
        """One more. A run that had ended before it was killed counts apart."""
        self.kills += kill.killed
        self.late += not kill.killed
        self.identical += kill.killed and not kill.wrong
        self.wrong += [kill.wrong] if kill.wrong else []


class Killer:
    """Kills a kind of run again and again.

    name: what it is called. train: makes it. processes: of each run. root: a folder for it. Making one trains it once and leaves it alone,
    which is what the others are compared with. Errors: UserError where that one fails.
    """

    def __init__(self, name: str, train: Train, root: Path, *, processes: int = 1, seed: int = 0) -> None:
        self.train, self.root, self.processes, self.rng = train, root, processes, random.Random(f"{seed}:{name}:{processes}")
        began = time.monotonic()
        wrong = self._ended_well(self._start(LONGEST), "the run that is not killed")
        self.seconds = time.monotonic() - began
        if wrong:
            raise UserError(f"{name}: {wrong}")
        self.expected = contents(root / "run")
        shutil.rmtree(root)

    def kill(self, number: int) -> Kill:
        """One run: started, killed at a random instant, and every third of them once more while it resumes; then compared."""
        try:
            killed, wrong = self._killed()
            if number % 3 == 2 and not wrong:
                _, wrong = self._killed()
            return Kill(killed, wrong or self._gone_on())
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def _killed(self) -> Kill:
        """Starts or resumes a run, and kills some of its processes after a random time."""
        pids = self._start(TIMEOUT)
        some = pids if self.rng.random() < 0.5 else [self.rng.choice(pids)]
        with _none_left(pids):
            time.sleep(self.rng.uniform(0, self.seconds))
            forked.kill(some)  # one that has ended, and has not been waited for, takes it and makes nothing of it
            began = time.monotonic()
            codes = forked.wait(pids, patience=PATIENCE)
        if time.monotonic() - began > PATIENCE:
            return Kill(True, f"a process went on for {PATIENCE:.0f} s after another was killed")
        words = forked.words(self.root, self.processes)
        left = [(code, text) for pid, code, text in zip(pids, codes, words, strict=True) if pid not in some]
        for code, text in left:
            if code not in (0, 2) or (code == 2 and not HEARD.match(text)):
                return Kill(True, f"a process that was not killed ended with {code}, and said: {_last(text)}")
        if late := -signal.SIGKILL not in codes:
            self.seconds *= 0.8  # the run that was timed met a busier machine
        return Kill(not late, "")

    def _gone_on(self) -> str:
        """Resumes a run that was killed; what is wrong then, or ""."""
        if wrong := self._ended_well(self._start(LONGEST), "the resume"):
            return wrong
        if files := differing(self.root / "run", self.expected):
            return f"differs in {', '.join(files)}"
        strays = sorted(path.name for path in self.root.iterdir() if path.name != "run")
        return f"left {', '.join(strays)} behind" if strays else ""

    def _start(self, timeout: float) -> list[int]:
        return forked.fork(self.processes, partial(_train, self.train, self.root), self.root, timeout=timeout, quiet=True)

    def _ended_well(self, pids: Sequence[int], which: str) -> str:
        """What is wrong of processes that nobody kills, or ""."""
        with _none_left(pids):
            codes = forked.wait(pids, patience=LONGEST)
        words = [_last(text) for text in forked.words(self.root, self.processes) if text.strip()]
        return f"{which} ended with {', '.join(map(str, codes))}: {'; '.join(words) or 'nothing was said'}" if any(codes) else ""


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["nothing"])[-1]


def _train(train: Train, root: Path, rank: int) -> None:
    """What a process does; all of them have to find the same there, so they look before one of them has made anything."""
    from mmalign.distributed.team import joined

    there = (root / "run").exists()
    train(root, resume=any(joined().tell(there)))


@contextmanager
def _none_left(pids: Sequence[int]) -> Iterator[None]:
    """Whatever happens inside, no process is left of it."""
    try:
        yield
    except BaseException:
        for pid in pids:
            try:
                forked.kill([pid])
                forked.wait([pid])
            except (ProcessLookupError, ChildProcessError):
                continue
        raise


def kills(
    trains: Sequence[tuple[str, Train, Sequence[int]]], count: int, root: Path, *, seed: int = 0,
    tell: Callable[[Killed, int], None],
) -> list[Killed]:  # fmt: skip
    """Kills so many runs of every kind, with each number of processes; what became of them.

    trains: name, how such a run is made, and with how many processes. tell: hears of every kill: of the kind, and how many are over.
    """
    table, over = list[Killed](), 0
    for name, train, processes in trains:
        for size in processes:
            killer = Killer(name, train, root / f"{name}-{size}", processes=size, seed=seed)
            row = Killed(name, size, killer.seconds)
            table.append(row)
            while row.kills < count and row.late < 3 * count:
                row.add(killer.kill(row.kills + row.late))
                over = sum(each.kills for each in table)
                tell(row, over)
    return table
