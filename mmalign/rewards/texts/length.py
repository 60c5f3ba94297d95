"""A penalty on completions that are too long, or too short."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Natural
from mmalign.rewards._shared.completions import on_texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def length(most: Natural, *, least: Natural = 0, soft: Natural = 0, unit: Literal["words", "characters"] = "words") -> Scorer:
    """0 for a completion of ``least`` to ``most - soft`` words, -1 for one over ``most`` or under ``least``, a straight line between::

        r = max(-1, min(0, (most - soft - n) / soft))    for n >= least

    most: words of the longest that is not -1. least: words of the shortest. soft: words before ``most`` over which it falls; 0 for a step.
    unit: ``words`` (between spaces) or ``characters``.
    Paper: Decoupled Clip and Dynamic Sampling Policy Optimization (DAPO), equation 13, https://arxiv.org/abs/2503.14476, in tokens.
    Errors: UserError for lengths that contradict one another.

    Examples:
        >>> mm.rewards.length(4, soft=2)(["one two", "one two three", "one two three four five"], ["count"] * 3).tolist()
        [0.0, -0.5, -1.0]
    """
    if not 0 <= least <= most - soft or soft < 0 or most < 1:
        raise UserError(f"length: got least={least}, most={most}, soft={soft}, takes 0 <= least <= most - soft")
    if unit not in ("words", "characters"):
        raise UserError(f"length.unit: got {unit!r}, takes words or characters")

    def score(text: str) -> float:
        count = len(text.split()) if unit == "words" else len(text)
        if count < least or count > most:
            return -1.0
        return min(0.0, (most - soft - count) / soft) if soft else 0.0

    return on_texts("length", score, low=-1.0, high=0.0)
