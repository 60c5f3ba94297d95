"""Starts a command of ours as several processes of this machine, by the engine that torchrun has."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmalign.types import UserError

GRACE = 60.0
"""Seconds that processes have to end by themselves, once one of them has failed, and to save."""

HANDED_ON = [each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")]  # those of this system


@contextmanager
def held_port() -> Iterator[int]:
    """A port of this machine that nobody is given while the block lasts, but for whoever asks for it by its number, as torch's store does.

    It is bound, and nobody listens there: the system hands such a port out to no other socket, and lets one more be bound to it where both
    allow it (SO_REUSEADDR).
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("" if sys.platform == "linux" else "127.0.0.1", 0))  # others let no second socket have the same addresses
        yield int(held.getsockname()[1])


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs ``python -m mmalign ARGUMENTS`` in so many processes that know each other, and returns the exit code of the first that failed.

    0 where none did. Each has a session of its own; Ctrl-C, SIGTERM, SIGHUP and SIGQUIT are handed on to all of them, each once. Where one
    fails, the others, who hear of it, have ``GRACE`` seconds to end. Several machines take ``torchrun`` or ``accelerate launch`` instead.
    Errors: UserError for fewer than 1, for more than there are GPUs, where there is one, and inside of another launcher.
    """
    import torch

    if processes < 1:
        raise UserError(f"--processes: got {processes}, takes 1 or more")
    if "WORLD_SIZE" in os.environ:
        raise UserError("--processes: a launcher has started this process already (WORLD_SIZE is set); takes one of the two")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--processes: got {processes}, this machine has {torch.cuda.device_count()} GPUs; takes at most one for each")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say, the processes say better
    with held_port() as port:
        return _run(arguments, processes, port)


def _run(arguments: Sequence[str], processes: int, port: int) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    pids, early = list[int](), list[int]()

    def hand_on(number: int, frame: FrameType | None) -> None:
        if not pids:
            early.append(number)
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    for each in HANDED_ON:  # before they are there: who ends meanwhile would leave them behind
        if each is signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, hand_on)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ""  # torch's handlers would end this process alone
    context: Any = start_processes(
        "mmalign",
        sys.executable,
        args=dict.fromkeys(range(processes), ("-m", "mmalign", *arguments)),
        envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
        logs_specs=DefaultLogsSpecs(),
    )
    del os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]
    pids += context.pids().values()
    for number in early:
        hand_on(number, None)
    codes = _waited([handler.proc for handler in context.subprocess_handlers.values()])
    context.close()
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _waited(processes: Sequence[Any]) -> list[int]:
    """Exit codes, those that failed first in front; once one has, the others are ended after ``GRACE`` seconds."""
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(processes):
        for rank, process in enumerate(processes):
            if rank not in codes and process.poll() is not None:
                codes[rank] = process.returncode
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return list(codes.values())
