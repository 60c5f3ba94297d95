"""Processes of a model's code that have lost their launcher, because the code ended it: adopted, recognised, and ended.

While a command runs, this process is the one that the kernel gives orphans to (a child subreaper of Linux). What the launcher starts
has a mark that nobody can take off, and that its children inherit, through every fork, session and program: ``launch.MARKS`` seccomp
filters more than this process has, which allow everything. A child of this process that has them has lost its launcher, as one that lives
has all of them below itself, and has none; so it is ended, with all that it started. Other orphans that come meanwhile are left alone.

Where the kernel does not count filters (before 5.9, or without seccomp) nothing is recognised.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Iterator

from mmalign.rewards._shared.launch import MARKS, SUBREAPER, SWEEPS, children, descendants, libc, read

IS_SUBREAPER = 37  # of prctl
_lock = threading.Lock()
_before: list[int] = []  # what this process was, once for every command that runs


@contextlib.contextmanager
def adopted() -> Iterator[None]:
    """Orphans come to this process while the block lasts, in any thread; those of commands are ended as it is left."""
    if libc is None:
        yield
        return
    with _lock:
        was = ctypes.c_int()
        libc.prctl(IS_SUBREAPER, ctypes.byref(was), 0, 0, 0)
        _before.append(_before[0] if _before else was.value)
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        with _lock:
            end_marked()
            was_one = _before.pop()
            libc.prctl(SUBREAPER, 1 if _before else was_one, 0, 0, 0)


def end_marked() -> int:
    """Ends the marked children of this process, and all that they started; how many are left where that does not succeed."""
    for _ in range(SWEEPS):
        if not _marked():
            return 0
        stopped: set[int] = set()
        for _ in range(SWEEPS):  # what stands still starts nothing new; its orphans come here, marked
            marked = _marked()
            moving = {*marked, *(pid for root in marked for pid in descendants(root))} - stopped
            for pid in moving:
                _kill(pid, signal.SIGSTOP)
            stopped |= moving
            if not moving:
                break
        for pid in stopped:
            _kill(pid, signal.SIGKILL)
        for pid in marked:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    return len(_marked())


def _marked() -> list[int]:
    least = _filters(os.getpid()) + MARKS
    return [pid for pid in children(os.getpid()) if _filters(pid) >= least]


def _filters(pid: int) -> int:
    """How many seccomp filters a process has; 0 where that is not said."""
    counts = [line.split()[1] for line in read(f"/proc/{pid}/status").splitlines() if line.startswith("Seccomp_filters:")]
    return int(counts[0]) if counts else 0


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
