"""What every head is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn


@dataclass(frozen=True)
class Head:
    """A map from features to scores, before it is known how wide they are.

    name: its function's. make: (H features, names of the T scores) -> a module with ``forward(features [R, H], columns) -> [R, T]``,
    columns: name -> an entry for each of the R rows (``annotator``, a prompt's own columns); all of its parameters are trained, and what
    of them is random is drawn from a generator of its own. reads: the columns without which a row has no score. views: how many features
    of a row it takes in place of one, as a reader with ``views`` gives them.
    """

    name: str
    make: Callable[[int, list[str]], nn.Module]
    reads: frozenset[str] = frozenset()
    views: int = 1


@runtime_checkable
class Plain(Protocol):
    """A head that plain torch computes of its tensors."""

    def code(self) -> tuple[str, ...]:
        """Lines of Python that make ``scores`` of features ``x`` and the head's tensors by name, ``head``."""
