"""Several processes that know each other, as a launcher starts them, but forked: nothing is imported again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.distributed.forked import fork, wait, words


def together(count: int, act: Callable[[int], Any], folder: Path, *, timeout: float = 120.0) -> list[tuple[int, str]]:
    """Runs ``act(rank)`` in so many processes at once; returns of each its exit code and what it had to say of its failure."""
    codes = wait(fork(count, act, folder, timeout=timeout))
    return list(zip(codes, words(folder, count), strict=True))
