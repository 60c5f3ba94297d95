"""Which outcomes a method lets its rows hold."""

from __future__ import annotations

from typing import NamedTuple


class Masking(NamedTuple):
    """What may be said at a step: the outcomes that a set of parameters finds likely there, and no other; of tokens alone.

    name: of the set. top_p: the likeliest that this much of its probability falls on, the one that crosses the border included.
    least: at least so many of them. What ends a row may always be said.
    """

    name: str
    top_p: float
    least: int = 1
