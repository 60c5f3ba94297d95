"""Waiting for threads of this process, by a clock that stands while the process does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import Any

LOOKS = 20


def wait(working: Sequence[Future[Any]], seconds: float) -> None:
    """Returns when all have ended, or ``seconds`` have passed; a time in which this process was stopped, or had no processor, counts as a
    twentieth of them, however long it was.

    So what hangs is left after ``seconds``, and what would have answered is not taken for it on a machine that stands still: a score, or
    a tool's answer, is not another one for that.
    """
    for _ in range(LOOKS):
        if not futures.wait(working, seconds / LOOKS).not_done:
            return
