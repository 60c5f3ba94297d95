"""What a method keeps from update to update (``Method.state``), copied and put back; nothing, where it keeps nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmalign.types import Method


def dump(method: Method) -> Any:
    """A copy of the state as JSON; None without any."""
    return None if method.state is None else copy.deepcopy(method.state.dump())


def load(method: Method, state: Any) -> None:
    """Puts back what ``dump`` gave."""
    if method.state is not None:
        method.state.load(state)


@contextmanager
def unchanged(method: Method) -> Iterator[None]:
    """Behind the block the state is what it was before: to look at an update is to make none."""
    state = dump(method)
    try:
        yield
    finally:
        load(method, state)
