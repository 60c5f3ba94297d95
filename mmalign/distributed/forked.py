"""Processes forked from this one, alone or as those of one run: nothing is imported again. For checks; runs are started by ``launch``."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmalign.distributed import team
from mmalign.distributed.launch import held_port
from mmalign.types import UserError

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def fork(count: int, act: Callable[[int], Any], folder: Path, *, timeout: float = 120.0, quiet: bool = False) -> list[int]:
    """Starts ``act(rank)`` in so many processes of one run; returns their ids.

    A process ends with 0, with 2 for a UserError, or with 1; what it had to say of its failure stands in ``folder`` (``words``).
    timeout: seconds that they wait for each other. quiet: what they print goes nowhere. Errors: UserError where the system cannot fork.
    """
    if os.name != "posix":
        raise UserError(f"processes: this system ({os.name}) cannot fork; takes Linux or macOS")
    pids = list[int]()
    folder.mkdir(parents=True, exist_ok=True)
    with held_port() as port:  # by each of them, too, until it ends
        for rank in range(count):
            _file(folder, rank).unlink(missing_ok=True)
            if (pid := os.fork()) == 0:
                launched = (rank, rank, count, "127.0.0.1", port) if count > 1 else ()
                _run(act, rank, dict(zip(LAUNCHED, map(str, launched), strict=False)), _file(folder, rank), timeout, quiet)
            pids.append(pid)
    return pids


def wait(pids: Sequence[int], *, patience: float | None = None) -> list[int]:
    """The exit codes of processes, in their order; minus its number for a signal. patience: seconds, after which those left are killed."""
    codes: dict[int, int] = {}
    deadline = None if patience is None else time.monotonic() + patience
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
                codes |= {pid: os.waitstatus_to_exitcode(status)} if ended else {}
        if deadline is not None and time.monotonic() > deadline:
            kill([pid for pid in pids if pid not in codes])
            deadline = None
        elif deadline is not None and len(codes) < len(pids):
            time.sleep(0.005)
    return [codes[pid] for pid in pids]


def kill(pids: Sequence[int]) -> None:
    """SIGKILL to processes that were forked here, and have not been waited for."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def words(folder: Path, count: int) -> list[str]:
    """What each process had to say of its failure, "" where nothing."""
    return [file.read_text(encoding="utf-8") if file.is_file() else "" for file in (_file(folder, rank) for rank in range(count))]


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.txt"


def _own_locks() -> None:
    """tqdm's lock is one for a process and all that are forked from it: one that is killed while it holds it would leave it so for all."""
    if (tqdm := sys.modules.get("tqdm.std")) is None:
        return
    classes = [vars(tqdm)["tqdm"]]
    for each in classes:  # which grows meanwhile
        classes += each.__subclasses__()
        if "_lock" in vars(each):
            each.set_lock(threading.RLock())


def _run(act: Callable[[int], Any], rank: int, launched: dict[str, str], file: Path, timeout: float, quiet: bool) -> NoReturn:
    import torch

    code = 0
    try:
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does then, this is another process
        for name in LAUNCHED:
            os.environ.pop(name, None)
        os.environ.update(launched, MMALIGN_TIMEOUT=str(timeout))
        _own_locks()
        torch.set_num_threads(1)  # the parent's threads are not in the child, which would wait for them for ever
        team.joined.cache_clear()
        act(rank)
    except UserError as error:
        code = 2
        file.write_text(str(error), encoding="utf-8")
    except BaseException:
        code = 1
        file.write_text(traceback.format_exc(), encoding="utf-8")
    finally:
        os._exit(code)
