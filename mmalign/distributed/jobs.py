"""What a command does, which has no steps: jobs that processes take in turn, what each made told to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmalign.distributed.team import Team


@contextmanager
def stopping_together(team: Team) -> Iterator[None]:
    """What fails inside of the block is told to the other processes, which stop with its words."""
    try:
        yield
    except Exception as error:
        team.fail(error)
        raise


def in_turn(team: Team, jobs: Sequence[Any], do: Callable[[Any], Any]) -> Iterator[Any]:
    """What ``do`` makes of each job, in their order: process r does the r-th of every round, and all of them see what came of it.

    A job is as large as for one process, and so are its numbers. do: returns what JSON holds (floats come back bit for bit).
    """
    for start in range(0, len(jobs), team.size):
        own = start + team.rank
        yield from team.tell(do(jobs[own]) if own < len(jobs) else None)[: len(jobs) - start]
