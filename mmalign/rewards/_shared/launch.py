"""Runs one command under limits and ends all that it started; started by ``sandbox`` as a script, with nothing of mmalign imported.

argv: a JSON object (``sandbox`` writes it). stdin: whatever arrives there, or its end, ends the command. The status descriptor gets two
lines of JSON: what the command is kept from, before it runs; and how it ended, when nothing of it is left.

Four processes, so that none that does the watching can be reached by what is watched::

    this one       holds the status descriptor, looks at time, memory, disk and processes; all orphans come to it
      the second   leaves the network, the process numbers and System V's memory behind, where the kernel lets it
        the first of the new numbering   waits for the command; the kernel ends with it whatever else has a number there
          the command, in a session of its own
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

NEWUSER, NEWPID, NEWNET, NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
PARENT_DEATH, DUMPABLE, SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 36, 38  # of prctl
SECCOMP, FILTER, ALLOW = 22, 2, 0x7FFF0000
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, the same on all architectures
POLL = 0.02  # seconds between two looks at what the command uses
LATE = 0.5  # seconds that a look may come late; more than that, and this process stood still, and the command with it
ENTRIES, DEPTH = 10_000, 64  # of its folder; more than that counts as a full disk
SWEEPS = 500  # to end what is left
MARKS = 8  # seccomp filters by which ``orphans`` knows what was started here; programs that guard themselves have one to three

libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def main() -> None:
    """Starts the command, watches it, ends what it left, and says how it went."""
    job = json.loads(sys.argv[1])
    status = job["status"]
    os.set_inheritable(status, False)
    if libc is not None:
        libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        libc.prctl(SUBREAPER, 1, 0, 0, 0)
        libc.prctl(DUMPABLE, 0, 0, 0, 0)  # the command cannot open our descriptors; its own exec makes it dumpable again
    results, reports = os.pipe()
    second = os.fork()
    if second == 0:
        _second(job, results, reports)
    _ahead_of_all()
    os.close(reports)
    watch = _Watch(job, results, second)
    watch.run(status)
    _say(status, {"code": watch.code, "why": watch.why, "left": end(os.getpid(), watch.first)})


class Clock:
    """A clock that stands while this process does. time: seconds since it was made."""

    def __init__(self) -> None:
        self.time, self._last = 0.0, time.monotonic()

    def look(self, most: float) -> float:
        """The seconds since the last look, ``most`` where this process has stood still for longer than that."""
        last, self._last = self._last, time.monotonic()
        passed = min(self._last - last, most)
        self.time += passed
        return passed


class _Watch:
    """What is known of a command while it runs. code: None until it has ended by itself; why: the limit that it met.

    time: that counts of it, see ``_late``. used: seconds of the processor, by all of its processes.
    """

    def __init__(self, job: dict[str, Any], results: int, second: int) -> None:
        self.job, self.results, self.own = job, results, {second}
        self.first: int | None = None
        self.code: int | None = None
        self.why = ""
        self.clock, self.time, self.used = Clock(), 0.0, 0.0

    def run(self, status: int) -> None:
        """Returns when the command has ended, has met a limit, or is to be stopped."""
        pending, pause = b"", POLL
        while not self.why:
            ready = select.select([self.results, 0], [], [], pause)[0]
            if self.results in ready:
                read = os.read(self.results, 65536)
                *lines, pending = (pending + read).split(b"\n")
                for line in lines:
                    self._hear(json.loads(line), status)
                if not read or self.code is not None:
                    return
            began = time.monotonic()
            if 0 in ready:
                self.why = "stopped"
            elif self._late(pause):
                self.why = "time"
            elif os.path.isdir("/proc/self"):
                self.why = self._over()
            pause = max(POLL, 4 * (time.monotonic() - began))  # a look may take a fifth of the time, in a folder of many files too

    def _hear(self, event: dict[str, Any], status: int) -> None:
        self.code = event.get("code", self.code)
        if "lacks" in event:
            self.first = event["first"]
            self.own.add(event["first"])
            _say(status, {"lacks": event["lacks"]})

    def _late(self, pause: float) -> bool:
        """Counts the time since the last look, and whether it is up.

        All of it counts where no process of the command asks for a processor, and else as much as they had of one: a program is not
        ended because the machine is busy, or stands still. But ``longest`` holds for any.
        """
        passed, before = self.clock.look(pause + LATE), self.used
        states, used = usage(os.getpid(), self.own)
        self.used = max(before, used)
        self.time += min(passed, self.used - before) if "R" in states else passed
        return self.time > self.job["wall"] or self.clock.time > self.job["longest"]

    def _over(self) -> str:
        """The limit that all processes of the command together are over; empty for none."""
        _reap(self.own)
        processes = [pid for pid in descendants(os.getpid()) if pid not in self.own]
        if len(processes) > self.job["processes"]:
            return "processes"
        unnamed = sum(_held(processes).values())  # in files without a name, which may be memory
        if unnamed + sum(map(_resident, processes)) > self.job["memory"] and unnamed + sum(map(_share, processes)) > self.job["memory"]:
            return "memory"
        return "disk" if unnamed + used(".", self.job["disk"]) > self.job["disk"] else ""


def _second(job: dict[str, Any], results: int, reports: int) -> None:
    """Never returns. In namespaces of its own, or where they are not to be had, it waits for the command itself."""
    os.close(results)
    os.close(job["status"])
    _mark()
    isolated = libc is not None and job["isolate"] and libc.unshare(NEWUSER | NEWPID | NEWNET | NEWIPC) == 0
    _die_with_parent()
    first = os.fork() if isolated else 0
    if first:
        _say(reports, {"lacks": _lacks(job, isolated), "first": first})
        os.close(reports)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # not reaped here, so that its number stays its own until the end
        os._exit(0)
    if isolated:
        _die_with_parent()
    else:
        _say(reports, {"lacks": _lacks(job, isolated), "first": os.getpid()})
    command = os.fork()
    if command == 0:
        _become(job, isolated)
    code = None
    while code is None:
        pid, ended = os.wait()
        code = os.waitstatus_to_exitcode(ended) if pid == command else None
    _say(reports, {"code": code})
    os._exit(0)


def _lacks(job: dict[str, Any], isolated: bool) -> list[str]:
    if not job["isolate"]:
        return []
    return [*([] if isolated else ["namespaces"]), *([] if _landlock_version() > 0 else ["landlock"])]


def _become(job: dict[str, Any], isolated: bool) -> None:
    """Never returns: a session of its own, nothing to read, the limits, and then the command."""
    try:
        _die_with_parent()
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if job["isolate"] and _landlock_version() > 0:
            _only_here(_landlock_version())
        limits = dict(job["limits"])
        if isolated and tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (5, 14):
            limits["RLIMIT_NPROC"] = job["processes"]  # before that, all processes of the user count
        for name, most in limits.items():
            kind = getattr(resource, name, None)
            if kind is not None:
                hard = resource.getrlimit(kind)[1]
                most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(kind, (most, most))
        os.execvpe(job["command"][0], job["command"], dict(os.environ))
    except OSError as error:
        os.write(1, f"{job['command'][0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _mark() -> None:
    """From now on this process, and all that it starts, have so many filters more that allow everything; nobody can take them off."""
    instruction = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, ALLOW))  # return
    program = ctypes.create_string_buffer(struct.pack("@HP", 1, ctypes.addressof(instruction)))
    if libc is not None:
        for _ in range(MARKS):
            libc.prctl(SECCOMP, FILTER, program, 0, 0)


def _ahead_of_all() -> None:
    """From now on this process, and nothing that it starts, runs before all others where it may.

    Root's processes have no limit of the kernel's on their number, and thousands of them would leave the one that counts them no time.
    """
    with contextlib.suppress(OSError, AttributeError):  # not root's, or no Linux: the kernel counts there
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def _die_with_parent() -> None:
    if libc is not None:
        libc.prctl(PARENT_DEATH, signal.SIGKILL, 0, 0, 0)


def _say(descriptor: int, event: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        os.write(descriptor, json.dumps(event).encode() + b"\n")


# ---- files: Landlock, in the kernel since 5.13


def _landlock_version() -> int:
    return 0 if libc is None else max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def _only_here(version: int) -> None:
    """From now on this process writes in its folder alone; where the kernel knows how, it connects nowhere and signals nobody outside."""
    write, truncate = 1 << 1, (1 << 14 if version >= 3 else 0)
    changes = write | truncate | sum(1 << bit for bit in range(4, 13)) | (1 << 13 if version >= 2 else 0)
    fields = [changes, *([0b11] if version >= 4 else []), *([0b11] if version >= 6 else [])]  # files; TCP; abstract sockets and signals
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    assert libc is not None
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    for path, allowed in ((".", changes), (os.devnull, write | truncate)):
        rule = struct.pack("=Qi", allowed, os.open(path, os.O_PATH | os.O_CLOEXEC))
        if libc.syscall(ADD_RULE, ruleset, 1, rule, ctypes.c_uint32(0)) != 0:
            raise OSError(ctypes.get_errno(), "Landlock takes no rule")
    if libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) != 0:
        raise OSError(ctypes.get_errno(), "Landlock does not start")
    os.close(ruleset)


# ---- what processes use, by /proc


def descendants(root: int) -> list[int]:
    """Processes that this one started, and those that they started, and so on; orphans are those of the process that adopted them."""
    known, waiting = [], [root]
    while waiting:
        below = list(children(waiting.pop()))
        known += below
        waiting += below
    return known


def children(parent: int) -> Iterator[int]:
    """Processes whose parent this one is, those of all its threads."""
    for task in _names(f"/proc/{parent}/task"):
        yield from map(int, read(f"/proc/{parent}/task/{task}/children").split())
    if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):  # a kernel without such lists
        for name in _names("/proc"):
            if name.isdigit() and (fields := read(f"/proc/{name}/stat").rpartition(")")[2].split()) and int(fields[1]) == parent:
                yield int(name)


def usage(root: int, own: set[int]) -> tuple[set[str], float]:
    """States of the processes below this one, ``own`` left out, and seconds of the processor that all of them had, and those that ended."""
    lines = {pid: read(f"/proc/{pid}/stat").rpartition(")")[2].split() for pid in descendants(root)}
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = sum(sum(map(int, fields[11:15])) for fields in lines.values())
    states = {fields[0] for pid, fields in lines.items() if fields and pid not in own}
    return states, ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """Bytes of memory that belong to no file, those shared with others too."""
    return _kilobytes(read(f"/proc/{pid}/status"), ("RssAnon:", "RssShmem:", "VmSwap:"))


def _share(pid: int) -> int:
    """The same, what n processes share counted as a part of n: after a fork most of it is shared."""
    text = read(f"/proc/{pid}/smaps_rollup")
    return _kilobytes(text, ("Pss_Anon:", "Pss_Shmem:", "SwapPss:")) if "Pss_Anon:" in text else _resident(pid)


def _kilobytes(text: str, names: tuple[str, ...]) -> int:
    return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def _held(processes: list[int]) -> dict[tuple[int, int], int]:
    """(device, inode) -> bytes, of open files that have no name any more, or never had one."""
    sizes = {}
    for pid in processes:
        for name in _names(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):  # closed in between
                file = os.stat(f"/proc/{pid}/fd/{name}")
                if stat.S_ISREG(file.st_mode) and file.st_nlink == 0:
                    sizes[file.st_dev, file.st_ino] = 512 * file.st_blocks
    return sizes


def used(folder: str, most: int) -> int:
    """Bytes on the disk of a folder, links not followed; more than ``most`` where it is too deep, too full, or closed to us."""
    total, entries, waiting = 0, 0, [(folder, 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            listed = list(os.scandir(path))
        except FileNotFoundError:
            continue  # removed in between
        except OSError:
            return most + 1
        entries += len(listed)
        if entries > ENTRIES or depth > DEPTH:
            return most + 1
        for entry in listed:
            with contextlib.suppress(FileNotFoundError):
                total += 512 * entry.stat(follow_symlinks=False).st_blocks
                if entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, depth + 1))
    return total


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # it has ended
        return []


def read(path: str) -> str:
    """A file of ``/proc``; empty where its process has ended."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:  # it has ended
        return ""


# ---- the end


def end(root: int, first: int | None = None) -> int:
    """Ends every process that ``root`` started; how many are left when that does not succeed. first: of the numbering they live in."""
    if first is not None:
        _kill(first, signal.SIGKILL)
    stopped: set[int] = set()
    for _ in range(SWEEPS):  # what stands still starts nothing new
        moving = set(descendants(root)) - stopped
        for pid in moving:
            _kill(pid, signal.SIGSTOP)
        stopped |= moving
        if not moving:
            break
    for _ in range(SWEEPS):
        for pid in descendants(root):
            _kill(pid, signal.SIGKILL)
        if root != os.getpid() or _reap(set()):
            break
        time.sleep(0.01)
    return len(descendants(root))


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap(but: set[int]) -> bool:
    """Takes leave of children that have ended, ``but`` for some; whether there are no children any more."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        if ended is None or ended.si_pid in but:
            return False
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    main()
