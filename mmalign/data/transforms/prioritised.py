"""Answers that come up as often as they are better than those beside them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.data._reading.around import PATIENCE, Around, inside, refuse_two_prompts
from mmalign.records import Pair, Ranking, Record, Records, Undecoded, outputs_of
from mmalign.types import UserError

COPIES = 2**20
"""A position is the source's times so many, plus how many copies of its next record are over."""


def prioritised(of: Records | Sequence[Record], *, look: Count = 1024) -> Prioritised:
    """Single answers, each drawn with a probability proportional to how far its score lies above the mean of its record's.

    Of the answer i of a record j with the scores ``s_j1, s_j2, ...``::

        A_ji = max(0, s_ji - mean_k s_jk),        p(j, i) = A_ji / sum over all answers of all records of A

    What comes is a ranking of that answer alone, and its score is A: ``method: {use: a_lol, baseline: none}`` takes it as the advantage
    that it is. A score that is not known is in no mean, and its answer does not come.

    Args:
        of: rankings, or pairs with scores (``score_chosen``, ``score_rejected``, or what ``rejudged`` finds).
        look: in so many records, in the order of seed 0, the largest ``P_j = sum_i A_ji`` is looked for. It changes how far the source is
            read for one answer, and no probability.

    A record of the source gives ``P_j / P`` answers, P the largest that was seen: none or one, or several in a row where it is larger
    still; in the mean just so many, drawn anew in every pass from the run's seed and the record's place, so that a run goes on behind
    any of them.

    Paper: Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models, arXiv 2305.14718, its priority sampling; read
    in the authors' code (``all_priority``), whose loss is weighted by A besides, as ours is.

    Deviations: the authors' V is a value head, fitted on the reference's own samples beforehand; here it is the mean of the record. They
    draw with replacement; here an answer comes at most once in a pass, unless its record is larger than all that were looked at.

    Errors: UserError for records without scores, of two prompts, or of which none that is looked at has an answer above its mean.

    Examples:
        >>> from mmalign.records import Ranking
        >>> stream = prioritised([Ranking("Why?", ("no", "because"), (1.0, 4.0))]).stream(seed=0)
        >>> next(stream)[:3]
        ('Why?', ('because',), (1.5,))
    """
    source = inside(of)
    seen = islice((source.undecoded if isinstance(source, Undecoded) else source.stream)(seed=0), look)
    largest = max((sum(advantages_of(record)) for record in seen), default=0.0)
    if not largest > 0:
        raise UserError(f"records.of: in {look} of them no answer's score is above its record's mean; takes records of different scores")
    return Prioritised(source, largest)


class Prioritised(Around):
    """See ``prioritised``; as ``records.Records``. largest: ``P``."""

    def __init__(self, source: Records, largest: float):
        super().__init__(source)
        self.largest = largest

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Records``."""
        yield from self._drawn(self.source.stream(seed=seed, start=start // COPIES), seed, start)

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Undecoded``."""
        coming = self.source.undecoded if isinstance(self.source, Undecoded) else self.source.stream
        yield from self._drawn(coming(seed=seed, start=start // COPIES), seed, start)

    def _drawn(self, coming: Iterator[Any], seed: int, start: int) -> Iterator[Any]:
        (before, over), idle = divmod(start, COPIES), 0
        for record in coming:
            ahead = advantages_of(record)
            idle = 0 if any(ahead) else idle + 1
            if idle >= PATIENCE:
                raise UserError(f"records: in {PATIENCE} records in a row no answer is above the mean of its record's")
            rng = random.Random(f"prioritised {seed} {record.position}")
            places = drawn(ahead, self.largest, rng)
            for number, place in list(enumerate(places, start=1))[over:]:
                last = number == len(places)
                yield alone(record, place, ahead[place])._replace(position=record.position * COPIES if last else before * COPIES + number)
            before, over = record.position, 0


def advantages_of(record: Any) -> list[float]:
    """``max(0, s_i - mean s)`` of each answer, 0 where its score is not known. Errors: UserError where it cannot have any."""
    refuse_two_prompts(record)
    if not isinstance(record, (Pair, Ranking)):
        raise UserError(f"records.of: got a {type(record).__name__}, takes rankings, or pairs with scores")
    known = [score for score in record.scores if not math.isnan(score)]
    if not known:
        raise UserError(f"records.of: {record.id or 'one'} has no scores, which say how often it comes; see {{use: rejudged}}")
    mean = math.fsum(known) / len(known)
    return [0.0 if math.isnan(score) else max(0.0, score - mean) for score in record.scores]


def drawn(ahead: Sequence[float], largest: float, rng: random.Random) -> list[int]:
    """Places of answers, ``sum(ahead) / largest`` of them in the mean, each with a probability proportional to what it is ahead."""
    share = sum(ahead) / largest
    count = math.floor(share) + (rng.random() < share % 1)
    if count >= COPIES:
        raise UserError(f"records.look: a record is {share:.3g} times as far ahead as any that was looked at; takes more")
    return rng.choices(range(len(ahead)), weights=ahead, k=count) if count else []


def alone(record: Pair | Ranking, place: int, score: float) -> Ranking:
    """One answer of a record, under a name of its own, with that score."""
    ratings = (record.ratings[place],) if record.ratings else ()
    return Ranking(record.prompt, (outputs_of(record)[place],), (score,), f"{record.id}/{place}" if record.id else "", ratings=ratings)
