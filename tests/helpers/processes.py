"""Several processes that know each other, as a launcher starts them, but forked: nothing is imported again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from mmalign.distributed.forked import fork, wait, words
from mmalign.distributed.team import Processes, Team


def together(count: int, act: Callable[[int], Any], folder: Path, *, timeout: float = 120.0) -> list[tuple[int, str]]:
    """Runs ``act(rank)`` in so many processes at once; returns of each its exit code and what it had to say of its failure."""
    codes = wait(fork(count, act, folder, timeout=timeout))
    return list(zip(codes, words(folder, count), strict=True))


def impatient(team: Team, seconds: float) -> None:
    """From now on this process waits no longer for the others: not before, as they have to come first, however busy the machine is."""
    from torch.distributed.distributed_c10d import _set_pg_timeout

    assert isinstance(team, Processes)
    _set_pg_timeout(timedelta(seconds=seconds), team._talk)


@contextmanager
def marked_end(folder: Path, rank: int) -> Iterator[None]:
    """Leaves word in a folder that is there at the end of the block, for ``until_ended``."""
    try:
        yield
    finally:
        (folder / f"ended_{rank}").touch()


def until_ended(folder: Path, *ranks: int) -> None:
    """Returns once all of these have left word."""
    while not all((folder / f"ended_{rank}").exists() for rank in ranks):
        time.sleep(0.01)
