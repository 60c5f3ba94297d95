"""Earlier checkpoints of a run, as one set of parameters that moves."""

from __future__ import annotations

from typing import Literal

import torch

from mmalign.types import Move, UserError

Draw = Literal["random", "latest", "first"]


def earlier(name: str, draw: Draw, *, every: int) -> Move:
    """A set that is a checkpoint of before: the ``latest``, the ``first``, or any of those so far alike (``random``).

    Checkpoint n = 0, 1, ... is what step ``n * every`` begins with. A random one is held by taking number n with probability 1 / (n + 1), a
    draw that depends on n alone, so that a resumed run holds the same one.

    name: of the set. draw: which. every: steps between checkpoints.

    Errors: UserError for another draw, or ``every`` below 1.

    Examples:
        >>> move = earlier("previous", "random", every=10)
        >>> [int(move.decay(10 * n) == 0) for n in range(8)]  # 1 where the set becomes the current one
        [1, 1, 0, 1, 0, 0, 0, 0]
    """
    if draw not in ("random", "latest", "first"):
        raise UserError(f"opponent: got {draw!r}, takes 'random', 'latest' or 'first'")
    if every < 1:
        raise UserError(f"every: got {every}, takes 1 or more")

    def kept(step: int) -> float:
        number = step // every
        if draw != "random" or number == 0:
            return 1.0 if draw == "first" and number else 0.0
        chance = torch.rand((), generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        return 0.0 if float(chance) < 1 / (number + 1) else 1.0

    return Move(name, {name: 1.0, "current": 1.0}, every, decay=kept)
