"""Several processes that know each other, as a launcher starts them, but forked: nothing is imported again."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def together(count: int, act: Callable[[int], Any], folder: Path, *, timeout: float = 120.0) -> list[tuple[int, str]]:
    """Runs ``act(rank)`` in so many processes at once; returns of each its exit code and what it had to say of its failure."""
    port, pids = free_port(), list[int]()
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            _run(rank, count, port, act, folder / f"rank_{rank}.txt", timeout)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    said = [file.read_text() if file.is_file() else "" for file in (folder / f"rank_{rank}.txt" for rank in range(count))]
    return list(zip(codes, said, strict=True))


def _run(rank: int, count: int, port: int, act: Callable[[int], Any], file: Path, timeout: float) -> None:
    from mmalign.distributed import team
    from mmalign.types import UserError

    code = 0
    try:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            MMALIGN_TIMEOUT=str(timeout),
        )  # fmt: skip
        torch.set_num_threads(1)
        team.joined.cache_clear()
        act(rank)
    except UserError as error:
        code = 2
        file.write_text(str(error))
    except BaseException:
        code = 1
        file.write_text(traceback.format_exc())
    finally:
        os._exit(code)
