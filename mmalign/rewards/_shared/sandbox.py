"""Code of a model in a process of its own: limits on time, memory, files and output, an empty environment, a folder that is removed.

On Linux, where the kernel lets users make namespaces, it also has no network, and no other process to see or signal. **What this is
no protection from**: it is the same user's account and file system, so such code can read what that user can read, and write where
that user can write (up to the limit on file size); it is no guard against faults of the kernel; and where namespaces are not to be had,
or the system is not Linux, the network is open, and a process that leaves its session outlives its time. For code that may be hostile,
run training in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmalign.types import UserError

LAUNCH = Path(__file__).with_name("launch.py")
OUTPUT = 2**20  # bytes of what a command prints


class Limits(NamedTuple):
    """seconds: of one command, of the processor's time, and by the clock with two more to start. memory: bytes of address space.

    file: bytes of one file. isolate: ``try`` leaves the network behind where the system allows it; ``must`` refuses to run where it
    does not; ``no`` does not try.
    """

    seconds: float = 10.0
    memory: int = 2**30
    file: int = 16 * 2**20
    isolate: str = "try"


class Done(NamedTuple):
    """How a command ended: ``code`` (None: its time was up), what it printed, and whether it was isolated."""

    code: int | None
    output: str
    isolated: bool


def refuse(owner: str, limits: Limits) -> None:
    """UserError for limits out of range, and where isolation is a must and cannot be had."""
    if limits.seconds <= 0 or limits.memory < 2**24 or limits.file < 1:
        got = f"seconds={limits.seconds}, memory={limits.memory}, file={limits.file}"
        raise UserError(f"{owner}: got {got}, takes numbers above 0, and memory of 16 MiB or more")
    if limits.isolate not in ("try", "must", "no"):
        raise UserError(f"{owner}.isolate: got {limits.isolate!r}, takes try, must or no")
    if os.name != "posix":
        raise UserError(f"{owner}: runs code under limits of POSIX systems; this one is {os.name}")
    if limits.isolate == "must" and not run([[sys.executable, "-c", ""]], {}, limits)[0].isolated:
        raise UserError(f"{owner}.isolate: got must, and this system gives no namespaces to this user; takes try or no, or another machine")


def run(commands: Sequence[Sequence[str]], files: Mapping[str, str], limits: Limits) -> list[Done]:
    """The commands one after the other, in a fresh folder with these files, up to the first that fails; the folder is removed."""
    found: list[Done] = []
    with tempfile.TemporaryDirectory(prefix="mmalign-run-", ignore_cleanup_errors=True) as folder:
        inside = Path(folder, "work")
        inside.mkdir()
        for name, text in files.items():
            (inside / name).write_text(text, encoding="utf-8", errors="replace")
        for number, command in enumerate(commands):
            found.append(_one(command, Path(folder), inside, limits, number))
            if found[-1].code != 0:
                break
    return found


def _one(command: Sequence[str], folder: Path, inside: Path, limits: Limits, number: int) -> Done:
    told, printed = folder / f"told.{number}", folder / f"printed.{number}"
    held = {
        "RLIMIT_CPU": math.ceil(limits.seconds), "RLIMIT_AS": limits.memory, "RLIMIT_FSIZE": max(limits.file, OUTPUT),
        "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64,
    }  # fmt: skip
    asked = json.dumps({"limits": held, "isolate": limits.isolate != "no", "told": str(told), "command": list(command)})
    places = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(inside), "TMPDIR": str(inside), "LANG": "C.UTF-8"}
    with open(printed, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCH), asked], cwd=inside, env=places, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True, close_fds=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout=limits.seconds + 2)
        except subprocess.TimeoutExpired:
            code = None  # it is ended below, with all it started
        finally:
            _end(process)
    if not told.is_file():
        raise UserError(f"the process for running code did not start: {_text(printed)[:200]!r}")
    ended = code in (-signal.SIGXCPU, -signal.SIGKILL) or code is None
    return Done(None if ended else code, _text(printed), told.read_text(encoding="utf-8") == "isolated")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its session."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _text(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(OUTPUT).decode("utf-8", "replace")
