"""Records that are hard, easy, or said clearly: those of which a number lies in a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, get_args

from mmalign.arguments.ranges import Count, Finite, Proportion
from mmalign.data._reading.around import Around, inside
from mmalign.records import Pair, Ranking, Record, Records, Undecoded
from mmalign.types import UserError

By = Literal["gap", "score", "strength"]


def chosen(
    of: Records | Sequence[Record], *, by: By = "gap", least: Finite | None = None, most: Finite | None = None,
    part: list[Proportion] | None = None, look: Count = 1024,
) -> Chosen:  # fmt: skip
    """Records of which a number is at least ``least`` and below ``most``; the others are passed over.

    Args:
        of: pairs, or rankings.
        by: ``gap``, by how much the better answer's score is ahead (of a ranking the best one's of the worst); ``score``, that of the best
            answer; ``strength``, how sure a pair's label is, 0.5 to 1.
        least, most: of it, in its units. Without one there is no such bound.
        part: in place of them ``[from, to]`` in 0..1 of the records in the order of the number: ``[0, 0.25]`` is the quarter with the
            smallest. Where these quantiles lie is seen in ``look`` records.
        look: how many are looked at for that, in the order of seed 0.

    ``{part: [0.5, 1]}`` and ``{part: [0, 0.5]}`` of one file are its easy and its hard half, each record in one of them (mixed preference
    optimisation, https://arxiv.org/abs/2403.19443, trains DPO on the easy one and PPO on the other).

    Errors: UserError for bounds between which nothing lies, a record without the number, and 1,000 records in a row that are passed over.

    Examples:
        >>> from mmalign.records import Pair
        >>> pairs = [Pair("a", "x", "y", scores=(2.0, 1.0)), Pair("b", "x", "y", scores=(9.0, 1.0))]
        >>> stream = chosen(pairs, least=2.0).stream(seed=0)
        >>> [next(stream).prompt for _ in range(3)]
        ['b', 'b', 'b']
    """
    if by not in get_args(By):
        raise UserError(f"records.by: got {by!r}, takes {', '.join(get_args(By))}")
    source = inside(of)
    if part is not None:
        if least is not None or most is not None:
            raise UserError("records.part: given beside least or most; takes one of them")
        least, most = _quantiles(source, by, part, look)
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    if not low < high:
        raise UserError(f"records.most: got {high:g}, takes more than least, which is {low:g}")
    return Chosen(source, by, low, high)


class Chosen(Around):
    """See ``chosen``; as ``records.Records``."""

    def __init__(self, source: Records, by: str, least: float, most: float):
        super().__init__(source)
        self.by, self.least, self.most = by, least, most
        self.useless = f"have a {by} outside {least:g} to {most:g}"

    def _change(self, record: Any) -> Any:
        return record if self.least <= number_of(record, self.by) < self.most else None


def number_of(record: Any, by: str) -> float:
    """A record's gap, score or strength. Errors: UserError where it has none."""
    scores = [score for score in record.scores if score == score] if isinstance(record, (Pair, Ranking)) else []
    if by == "strength" and isinstance(record, Pair) and record.strength == record.strength:
        return max(record.strength, 1 - record.strength)
    if isinstance(record, Ranking):
        scores.sort(reverse=True)
    elif scores and record.strength < 0.5:
        scores.reverse()
    if by == "score" and scores:
        return float(scores[0])
    if by == "gap" and len(scores) > 1:
        return float(scores[0] - scores[-1])
    name = record.id or f"a {type(record).__name__}"
    raise UserError(f"records.of: {name} has no {by}, by which they are chosen; takes pairs or rankings with scores, see {{use: rejudged}}")


def _quantiles(source: Records, by: str, part: Sequence[float], look: int) -> tuple[float, float]:
    """Where a part begins and ends; infinite at the ends of the order. Errors: UserError for what is no part."""
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise UserError(f"records.part: got {list(part)}, takes [from, to] in 0..1")
    known = list[float]()
    for record in islice((source.undecoded if isinstance(source, Undecoded) else source.stream)(seed=0), look):
        known.append(number_of(record, by))
    known.sort()
    at = [known[min(len(known) - 1, int(share * len(known)))] for share in part]
    return -math.inf if part[0] == 0 else at[0], math.inf if part[1] == 1 else at[1]
