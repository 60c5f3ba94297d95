"""Code of a model in processes of its own: limits on what it uses, an empty environment, a folder that is removed.

- Everywhere: a process has limits on its processor's time, address space, files and descriptors; what it prints arrives by a pipe, and
  is cut; it ends with this process, at its time by the clock, or at a word through a pipe.
- On Linux, the memory, the disk and the number of all processes together are looked at every 20 ms, and whatever a command started ends
  before its result is read: orphans, sessions of their own, and what is left of a launcher that the code ended (``orphans``).
- Where the kernel lets users make namespaces, it has no network, and no process of ours to signal.
- Where the kernel has Landlock (5.13 and newer), it writes in its folder alone; from 6.7 on it makes no TCP connection without
  namespaces either, and from 6.12 on sends no signal to others.

**What this is no protection from**: it is the same user's account, so such code can read what that user can read. It is no guard against
faults of the kernel, nor against code that looks for its tests. Without namespaces other processes of the user are in sight, and without
Landlock in reach, this one too: such code may end the training, and then outlive its time; and it may fill the disk
elsewhere. Between two looks a limit on all together can be passed; System V's shared memory that no process holds is not seen. For code
that may be hostile, run training in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mmalign.types import UserError

LAUNCH = Path(__file__).with_name("launch.py")
OUTPUT = 2**20  # bytes of what a command prints; one that prints more is ended
START = 60.0  # seconds that the launcher may take beside those of the command, on a busy machine
LACKS = {
    "namespaces": "with the network open and other processes in sight: this system gives no namespaces to this user",
    "landlock": "with all files of this user in reach: this kernel has no Landlock",
}


class Limits(NamedTuple):
    """seconds: of one process, of the processor's time; and of a command, by the clock, with two more to start. That clock stands
    while the machine does, and while the command waits for a processor (ten times as long, and a minute, at the most).

    memory: bytes of address space of one process, and of what all of a command's processes hold. file, disk: bytes of one file, and of
    all. processes: of a command, at a time. isolate: ``try`` leaves the network and others' files behind where the system allows it;
    ``must`` refuses to run where it does not; ``no`` does not try.
    """

    seconds: float = 10.0
    memory: int = 2**30
    file: int = 16 * 2**20
    isolate: str = "try"
    disk: int = 256 * 2**20
    processes: int = 64


class Done(NamedTuple):
    """How a command ended. code: its exit status, None where it was ended. output: what it printed, cut.

    lacks: names of ``LACKS`` that it was not kept from. why: what ended it: ``time``, ``memory``, ``disk``, ``processes``, ``output``;
    ``start`` where it never began.
    """

    code: int | None
    output: str
    lacks: tuple[str, ...] = ()
    why: str = ""


def refuse(owner: str, limits: Limits) -> None:
    """UserError for limits out of range, where nothing can be run, and where isolation is a must and cannot be had."""
    if limits.seconds <= 0 or limits.memory < 2**24 or limits.file < 1 or limits.disk < 1 or limits.processes < 1:
        got = ", ".join(f"{name}={value}" for name, value in limits._asdict().items() if name != "isolate")
        raise UserError(f"{owner}: got {got}, takes numbers above 0, and memory of 16 MiB or more")
    if limits.isolate not in ("try", "must", "no"):
        raise UserError(f"{owner}.isolate: got {limits.isolate!r}, takes try, must or no")
    if os.name != "posix":
        raise UserError(f"{owner}: runs code under limits of POSIX systems; this one is {os.name}")
    done = run([[sys.executable, "-I", "-S", "-c", ""]], {}, limits._replace(seconds=START))[0]
    if done.why == "start":
        raise UserError(f"{owner}: the process for running code did not start: {done.output[:200]!r}")
    if limits.isolate == "must" and done.lacks:
        raise UserError(f"{owner}.isolate: got must, and code would run {LACKS[done.lacks[0]]}; takes try or no, or another machine")


def run(commands: Sequence[Sequence[str]], files: Mapping[str, str], limits: Limits) -> list[Done]:
    """The commands one after the other, in a fresh folder with these files, up to the first that fails; the folder is removed.

    Whatever the code does, this raises nothing: a command that could not be run has ``why``.
    """
    results: list[Done] = []
    try:
        folder = tempfile.mkdtemp(prefix="mmalign-run-")
    except OSError as error:  # a disk that is full
        return [Done(None, str(error), why="start")]
    inside = Path(folder, "work")
    try:
        inside.mkdir()
        for name, text in files.items():
            (inside / name).write_text(text, encoding="utf-8", errors="replace")
        for command in commands:
            replaced = inside.is_symlink() or not inside.is_dir()
            results.append(Done(None, "", why="disk") if replaced else _one(command, inside, limits))
            if results[-1].code != 0:
                break
    except OSError as error:
        results.append(Done(None, str(error), why="start"))
    finally:
        _remove(folder)
    return results


def _one(command: Sequence[str], inside: Path, limits: Limits) -> Done:
    from mmalign.rewards._shared.orphans import adopted  # of POSIX systems, as all that follows

    with adopted():
        return _piped(command, inside, limits)


def _piped(command: Sequence[str], inside: Path, limits: Limits) -> Done:
    output, printing = os.pipe()
    status, reporting = os.pipe()
    try:
        process = _launched(command, inside, limits, printing, reporting)
    except OSError as error:  # no memory, or no more processes
        _close(output, status)
        return Done(None, str(error), why="start")
    finally:
        _close(printing, reporting)
    with process:
        try:
            return _watched(process, output, status, _longest(limits) + START)
        finally:
            _end(process)
            _close(output, status)


def _longest(limits: Limits) -> float:
    """Seconds by the clock after which a command is ended that was kept waiting for a processor."""
    return 10 * limits.seconds + 60


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _launched(command: Sequence[str], inside: Path, limits: Limits, printing: int, reporting: int) -> subprocess.Popen[bytes]:
    rlimits = {
        "RLIMIT_CPU": math.ceil(limits.seconds), "RLIMIT_AS": limits.memory, "RLIMIT_FSIZE": limits.file, "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64, "RLIMIT_MSGQUEUE": 0,
    }  # fmt: skip
    job = {
        "limits": rlimits, "wall": limits.seconds + 2, "longest": _longest(limits), "memory": limits.memory, "disk": limits.disk,
        "processes": limits.processes,
        "isolate": limits.isolate != "no", "status": reporting, "command": list(command),
    }  # fmt: skip
    places = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(inside), "TMPDIR": str(inside), "LANG": "C.UTF-8"}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(LAUNCH), json.dumps(job)], cwd=inside, env=places, stdin=subprocess.PIPE, stdout=printing,
        stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(reporting,),
    )  # fmt: skip


def _watched(process: subprocess.Popen[bytes], output: int, status: int, longest: float) -> Done:
    """What the launcher reports, and what the command prints meanwhile, for so many seconds by a clock that stands while we do."""
    from mmalign.rewards._shared.launch import LATE, Clock

    clock = Clock()
    read = {output: b"", status: b""}
    with selectors.DefaultSelector() as selector:
        for descriptor in (output, status):
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ)
        while status in {key.fd for key in selector.get_map().values()} and clock.time < longest:
            ready = selector.select(timeout=1.0)
            clock.look(1.0 + LATE)
            for key, _ in ready:
                if not _more(key.fd, read):
                    selector.unregister(key.fd)
            if len(read[output]) > OUTPUT:
                _stop(process)
    while len(read[output]) <= OUTPUT and _more(output, read):
        pass  # what was printed just before the end
    events = [json.loads(line) for line in read[status].split(b"\n")[:-1]]
    text = read[output][:OUTPUT].decode("utf-8", "replace")
    if not events:
        return Done(None, text, why="start")
    lacks = tuple(events[0]["lacks"]) if "lacks" in events[0] else ()
    code, why = events[-1].get("code"), events[-1].get("why", "time")
    if events[-1].get("left"):
        warnings.warn(f"{events[-1]['left']} processes of a model's code did not end", stacklevel=2)
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        code, why = None, "time"
    return Done(code, text, lacks, "output" if why == "stopped" else why)


def _more(descriptor: int, read: dict[int, bytes]) -> bool:
    """Reads a piece; whether there was one."""
    try:
        piece = os.read(descriptor, 65536)
    except BlockingIOError:  # nothing now
        return False
    read[descriptor] += piece if len(read[descriptor]) <= OUTPUT else b""
    return bool(piece)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended by itself
        os.write(process.stdin.fileno(), b"x")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a launcher that does not end by itself, and all that it started."""
    if process.poll() is None:
        try:
            process.wait(timeout=5)  # it has said its last word
        except subprocess.TimeoutExpired:
            from mmalign.rewards._shared.launch import end

            end(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _remove(folder: str) -> None:
    """Removes what the code left, however deep, and whatever rights it took away."""
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, "--", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
