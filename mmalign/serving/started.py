"""Servers of rewards that a run starts, and that end with it: by themselves, as soon as the process that started them is no more."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments.ranges import Natural, Positive
from mmalign.arguments.signatures import Record
from mmalign.files import write_text
from mmalign.serving.environments import INSIDE, environment, python_of
from mmalign.serving.listening import READY
from mmalign.serving.wire import content_hash
from mmalign.types import UserError

TOKEN = "MMALIGN_REWARD_TOKEN"
"""The variable that a started server finds its token in."""
DYING = 1.0  # seconds in which a server that gave no answer may turn out to be dead
GRACE = 15.0  # seconds that a server has to end by itself
_OWN = dict[int, tuple[int, subprocess.Popen[bytes]]]()  # servers by their numbers, and the process that started them


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """A server of rewards that the run starts, and stops at its end.

    config: of ``mmalign serve-reward``, a YAML file. requirements: a file of pip's for an environment of its own, in place of what the
    config says. seconds: that it has from its start until it listens; an environment that has to be made first has its own time.
    restarts: how often it is started again where it ended though nobody ended it; what it was asked then is asked again. After that its
    answers are missing.
    """

    config: str
    requirements: str | None = None
    seconds: Positive = 600.0
    restarts: Natural = 3


class Address(NamedTuple):
    """Where a started server listens, the token that it takes, and the number of its process."""

    url: str
    token: str
    pid: int


@dataclass
class _Process:
    """A server as its starter holds it: the end of its process's input is what keeps it going."""

    process: subprocess.Popen[bytes]
    log: Path
    address: Address
    owner: int = field(default_factory=os.getpid)

    def end(self) -> None:
        """Lets it end by itself, and makes it, where it does not. A fork of the starter leaves it alone."""
        if os.getpid() != self.owner:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        _OWN.pop(self.process.pid, None)
        self.log.unlink(missing_ok=True)


def started(owner: Any, name: str, start: Start, say: Callable[[str], None]) -> Address:
    """Where the server of ``start`` is, which ends with ``owner``, or with the process.

    Of the processes of a run on one machine the first starts it, and the others are told. name: of the reward, for messages. say: told
    what is going on. Errors: UserError for a server that does not start, with its last words.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))) == 1:
        return _start(owner, name, start, say).address
    from filelock import FileLock

    run = f"{os.getppid()}-{os.environ.get('MASTER_PORT', '')}-{name}-{start.config}-{start.requirements}"
    folder = Path(tempfile.gettempdir()) / f"mmalign-servers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{name}.start: {folder} is somebody else's")
    place = folder / f"{content_hash(run)[:16]}.json"
    with FileLock(f"{place}.lock"):
        if place.is_file():
            told = Address(**json.loads(place.read_text(encoding="utf-8")))
            if alive(told.pid):
                return told
        server = _start(owner, name, start, say)
        write_text(place, json.dumps(server.address._asdict()))  # in a folder that nobody else reads
        weakref.finalize(owner, place.unlink, missing_ok=True)
    return server.address


def _start(owner: Any, name: str, start: Start, say: Callable[[str], None]) -> _Process:
    python, inside = sys.executable, {}
    requirements = start.requirements or _requirements_of(start.config)
    if requirements is not None:
        place = environment(requirements, say)
        python, inside = python_of(place), {INSIDE: str(place)}
    token = secrets.token_hex(16)
    handle, log = tempfile.mkstemp(prefix="mmalign-server-", suffix=".log")
    alone = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    words = ["serve-reward", start.config, "serve.port=0", "serve.host=127.0.0.1", f"serve.token_env={TOKEN}", "--with-stdin"]
    say(f"{name}: starting its server, {start.config}")
    with open(handle, "wb") as errors:
        process = subprocess.Popen(
            [python, "-m", "mmalign", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**alone, **inside, TOKEN: token},
            start_new_session=True,  # Ctrl-C is the run's, which ends it
        )
    line = _first_line(process, READY.encode(), start.seconds)
    server = _Process(process, Path(log), Address(line.split()[1] if line else "", token, process.pid))
    if not line:
        process.kill()
        words_of = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        server.end()
        why = words_of[-1][:300] if words_of else f"it said nothing within {start.seconds:g} s"
        raise UserError(f"{name}.start: the server of {start.config} did not start: {why}")
    _OWN[process.pid] = os.getpid(), process
    weakref.finalize(owner, server.end)  # at the latest when this process ends
    say(f"{name}: {line}")
    return server


def _requirements_of(config: str) -> str | None:
    from mmalign.config import load

    return load(config).get("requirements")


def _first_line(process: subprocess.Popen[bytes], beginning: bytes, seconds: float) -> str:
    """The first line of a process's that begins so; '' where it ends before, or takes longer."""
    assert process.stdout is not None
    until, heard = time.monotonic() + seconds, b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        if not (some := os.read(process.stdout.fileno(), 2**12)):
            break
        heard += some
        for line in heard.split(b"\n")[:-1]:
            if line.startswith(beginning):
                return line.decode(errors="replace").strip()
    return ""


def alive(pid: int, *, patience: float = 0.0) -> bool:
    """Whether a server's process goes on; of one that somebody else started, as far as can be seen.

    patience: seconds in which it may still end: one that is being killed answers no more, and is there for a moment.
    """
    owner, process = _OWN.get(pid, (0, None))
    if process is not None and owner == os.getpid():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        return process.returncode is None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
