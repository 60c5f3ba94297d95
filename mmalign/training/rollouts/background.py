"""Calls that are made while the caller goes on: one after another, in the order in which they were asked for, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

T = TypeVar("T")


class Background:
    """``with Background() as background: wait = background(call); ...; wait()``, which gives what ``call`` does, or raises what it raises.

    threaded: otherwise a call is made where it is waited for. What is still to be called when the block ends is left out, and what is
    under way is waited for: nothing of a run goes on behind its end.
    """

    def __init__(self, *, threaded: bool = True):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mmalign-background") if threaded else None  # its thread starts with a call

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, call: Callable[[], T]) -> Callable[[], T]:
        if self._pool is None:
            return call
        return self._pool.submit(_as_here(call)).result


def _as_here(call: Callable[[], T]) -> Callable[[], T]:
    """The call with what is a setting of this thread."""
    gradients, device = torch.is_grad_enabled(), torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def here() -> T:
        if device is not None:
            torch.cuda.set_device(device)
        with torch.set_grad_enabled(gradients):
            return call()

    return here
