"""Starts a command of ours as several processes of this machine, by the engine that torchrun has."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from mmalign.types import UserError

GRACE = 60.0
"""Seconds that processes have to end by themselves, once one of them has failed, and to save."""


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs ``python -m mmalign ARGUMENTS`` in so many processes that know each other, and returns the exit code of the first that failed.

    0 where none did. Each has a session of its own; Ctrl-C, SIGTERM and SIGHUP are handed on to all of them, each once. Where one fails,
    the others, who hear of it, have ``GRACE`` seconds to end. Several machines take ``torchrun`` or ``accelerate launch`` instead.
    Errors: UserError for fewer than 1, for more than there are GPUs, where there is one, and inside of another launcher.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.utils.distributed import get_free_port

    if processes < 1:
        raise UserError(f"--processes: got {processes}, takes 1 or more")
    if "WORLD_SIZE" in os.environ:
        raise UserError("--processes: a launcher has started this process already (WORLD_SIZE is set); takes one of the two")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UserError(f"--processes: got {processes}, this machine has {torch.cuda.device_count()} GPUs; takes at most one for each")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say, the processes say better
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port()), "WORLD_SIZE": str(processes)}
    if "OMP_NUM_THREADS" not in os.environ:
        shared["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    context: Any = start_processes(
        "mmalign",
        sys.executable,
        args=dict.fromkeys(range(processes), ("-m", "mmalign", *arguments)),
        envs={rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)},
        logs_specs=DefaultLogsSpecs(),
    )

    def hand_on(number: int, frame: FrameType | None) -> None:
        for pid in context.pids().values():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if each is signal.SIGINT or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, hand_on)
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
