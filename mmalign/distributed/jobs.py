"""What a command does, which has no steps: jobs that processes take in turn, what each made told to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from mmalign.distributed.team import Team

Job = TypeVar("Job")


@contextmanager
def stopping_together(team: Team) -> Iterator[None]:
    """What fails inside of the block is told to the other processes, which stop with its words."""
    try:
        yield
    except Exception as error:
        team.fail(error)
        raise


def in_turn(team: Team, jobs: Iterable[Job], do: Callable[[Job], Any]) -> Iterator[tuple[Job, Any]]:
    """Each job with what ``do`` made of it, in their order: process r does the r-th of every round, and all of them see what came of it.

    A job is as large as for one process, and so are its numbers. do: returns what JSON holds (floats come back bit for bit).
    """
    coming = iter(jobs)
    while some := list(islice(coming, team.size)):
        yield from zip(some, team.tell(do(some[team.rank]) if team.rank < len(some) else None), strict=False)
