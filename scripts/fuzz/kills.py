"""Kills a small run before its file operations; its resume has to end as the run that was left alone: to the byte, with no dead end.

python scripts/fuzz/kills.py                          # before every file operation of a run
python scripts/fuzz/kills.py --every 7
python scripts/fuzz/kills.py --only 41 --keep out     # before one operation again

A file operation is one that Python audits (open, rename, remove, mkdir, rmdir) in the run's folder. ``mmalign selftest --kill9`` kills runs
at random instants, and several processes; both compare log, samples, checkpoints and summary, times aside.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.distributed import forked
from mmalign.selftest.trials import contents, differing

TRAIN: Callable[..., Any] = runpy.run_path(str(Path(__file__).with_name("runs.py")))["train"]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def train(root: Path, rank: int, *, before: int = -1, of: str = "", count: Path | None = None) -> None:
    """Trains, or goes on. before: the number of the file operation that it is killed at, among those whose path has ``of`` in it.
    count: where their number goes."""
    done = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        path = str(arguments[0]) if event in EVENTS and isinstance(arguments[0], (str, Path)) else ""
        if path.startswith(str(root)) and of in path:
            if done == before:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(audit)
    TRAIN(root, resume=(root / "run").exists())
    if count is not None:
        number, done = done, -(10**9)
        count.write_text(str(number))


def child(root: Path, **how: Any) -> int:
    """The exit code of a process that trains in ``root``, minus its number for a signal."""
    return forked.wait(forked.fork(1, partial(train, root, **how), root, quiet=True))[0]


def gone_on(root: Path, expected: dict[str, str]) -> str:
    """Resumes a run that was killed; what is wrong then, or ''."""
    if code := child(root):
        return f"the resume ended with {code}: {forked.words(root, 1)[0]}"
    wrong = differing(root / "run", expected)
    return f"differs in {', '.join(wrong)}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """How many runs ended otherwise than the one that was left alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="of the file operations, every so many")
    parser.add_argument("--only", type=int, help="one file operation, by its number")
    parser.add_argument("--keep", type=Path, help="where to keep that run, as it was killed")
    options = parser.parse_args(arguments)
    runs = wrong = killed = 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place).resolve()
        with contextlib.redirect_stdout(io.StringIO()):
            TRAIN(base / "warm")  # so that no process of those below imports anything
        root = base / "run"
        if child(root, count=base / "count"):
            raise SystemExit(f"the run that is not killed fails: {forked.words(root, 1)[0]}")
        operations = int((base / "count").read_text())
        expected = contents(root / "run")
        for number in range(0, operations, options.every) if options.only is None else [options.only]:
            shutil.rmtree(root, ignore_errors=True)
            runs += 1
            killed += child(root, before=number) == -signal.SIGKILL
            if options.keep is not None:
                shutil.copytree(root, options.keep)
            if what := gone_on(root, expected):
                wrong += 1
                print(f"killed before operation {number}: {what}")
    print(f"{runs} runs of {operations} file operations, {killed} killed before one; {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
