"""Kills a small run, and sees that its resume ends as the run that was left alone: to the byte, with no dead end and nothing left over.

python scripts/fuzz/kills.py                          # before every file operation of a run, and 200 times at random
python scripts/fuzz/kills.py --random 20 --seed 7
python scripts/fuzz/kills.py --only 41 --keep out     # before one operation again

A file operation is one that Python audits (open, rename, remove, mkdir, rmdir) in the run's folder. Random kills come after a random time,
until so many runs were killed (those that ended before are compared too), and every third of them is killed once more while it resumes.
Compared are log, samples, checkpoints and summary, times aside.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

TRAIN: Callable[..., Any] = runpy.run_path(str(Path(__file__).with_name("runs.py")))["train"]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
TIMES = ("seconds", "train_seconds", "crc32")  # crc32: of a state that holds times


def child(act: Callable[[], None]) -> int:
    """Runs ``act`` in a process of its own; the signal that ended it, 0 for none, or minus its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the parent's threads are not in the child, which would wait for them for ever
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def train(root: Path, *, before: int = -1, after: float | None = None, count: Path | None = None) -> None:
    """Trains, or goes on. before: the number of the file operation that it is killed at. after: seconds. count: where their number goes."""
    done = 0

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in EVENTS and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(str(root)):
            if done == before:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(audit)
    if after is not None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    TRAIN(root, resume=(root / "run").exists())
    if count is not None:
        number, done = done, -(10**9)
        count.write_text(str(number))


def plain(value: Any) -> Any:
    """JSON without times."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list) else value


def contents(run: Path) -> dict[str, str]:
    """A digest of every file of a run; of those with times in them, of the rest. The page and what it ran with are left out."""
    digests = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(run)), path.read_bytes()
        if name in ("report.html", "versions.json", ".lock"):
            continue
        if path.suffix in (".json", ".jsonl"):
            lines = [data] if path.suffix == ".json" else data.splitlines()
            data = json.dumps([plain(json.loads(line)) for line in lines]).encode()
        digests[name] = hashlib.sha256(data).hexdigest()
    return digests


def gone_on(root: Path, expected: dict[str, str]) -> str:
    """Resumes a run that was killed; what is wrong then, or ''."""
    if code := child(partial(train, root)):
        return f"the resume ended with {code}"
    there = contents(root / "run")
    wrong = sorted(name for name in {*there, *expected} if there.get(name) != expected.get(name))
    return f"differs in {', '.join(wrong)}" if wrong else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """How many runs ended otherwise than the one that was left alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="of the file operations, every so many")
    parser.add_argument("--random", type=int, default=200, help="how many to kill at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one file operation, by its number")
    parser.add_argument("--keep", type=Path, help="where to keep that run, as it was killed")
    options = parser.parse_args(arguments)
    runs = wrong = killed = at_random = twice = 0
    with tempfile.TemporaryDirectory() as place:
        base = Path(place).resolve()
        with contextlib.redirect_stdout(io.StringIO()):
            TRAIN(base / "warm")  # so that no process of those below imports anything
        began = time.monotonic()
        root = base / "run"
        if child(partial(train, root, count=base / "count")):
            raise SystemExit("the run that is not killed fails")
        seconds, operations = time.monotonic() - began, int((base / "count").read_text())
        expected = contents(root / "run")
        rng = random.Random(options.seed)
        numbers = range(0, operations, options.every) if options.only is None else [options.only]
        at_operations: list[dict[str, Any]] = [{"before": number} for number in numbers]
        while at_operations or (options.only is None and at_random < options.random):
            plan = at_operations.pop(0) if at_operations else {"after": rng.uniform(0, seconds)}
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            runs += 1
            if child(partial(train, root, **plan)) == signal.SIGKILL:
                killed, at_random = killed + 1, at_random + ("after" in plan)
            if options.keep is not None:
                shutil.copytree(root, options.keep)
            if "after" in plan and runs % 3 == 0:
                twice += child(partial(train, root, after=rng.uniform(0, seconds))) == signal.SIGKILL
            if what := gone_on(root, expected):
                wrong += 1
                print(f"killed {plan}: {what}")
    print(f"{runs} runs of {operations} file operations, {killed - at_random} killed before one, {at_random} at random; {wrong} wrong")
    print(f"{twice} were killed again while they resumed")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main()))
