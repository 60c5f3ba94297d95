"""Preferences that change with time, followed to where they are going."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from mmalign.arguments.ranges import Count, Natural
from mmalign.conversations import told_apart_by
from mmalign.data._reading.around import Around, inside
from mmalign.data.texts import texts
from mmalign.records import Digested, Pair, Records
from mmalign.types import UserError

Key = tuple[str, frozenset[Any]]


def forecast(of: list[Any], *, order: Natural = 1, ahead: Count = 1, most: Count = 5) -> Forecast:
    """The last of several times' pairs, labelled as they will be ``ahead`` times later, by differences of order ``order``.

    Each time votes for a pair: ``v_t = 2 p - 1`` of the order that the last time gives it, 0 where it does not have the pair. What comes
    next has no difference of order K + 1, that is the polynomial of degree K through the last K + 1 votes goes on::

        sum_{i=0}^{K+1} (-1)^i C(K + 1, i) v_{t-i} = 0

    The sign of what comes of it is who is ahead, and a pair comes up ``min(|v|, most)`` times as often as one of |v| = 1: with order 1,
    one that was turned round between the last two times (-1, 1) three times as often as one that was not.

    Args:
        of: two or more records of pairs, or files as ``texts`` reads them, the oldest first; of rounds ``{stage: judge, round: all}``.
        order: K; 0 goes on as things are. With fewer than K + 1 times it is as high as they allow, as at the beginning of rounds.
        ahead: how many times ahead. most: as which a larger vote counts, since extrapolation grows fast with order and distance.

    Paper: ProgressGym: Alignment with a Millennium of Moral Progress, arXiv 2406.20087 (extrapolative DPO and RLHF; with order 0 its
    lifelong ones). Read in the authors' code.

    Deviations: there a pair is repeated |v| times; here it is drawn as often, so that a stream goes on from any place. Soft labels are
    ours, and a vote of 0, of which nothing follows, is passed over.

    Errors: UserError for no time, and for records that are no pairs.

    Examples:
        >>> from mmalign.records import Pair
        >>> old, new = [Pair("q", "a", "b", strength=0.9)], [Pair("q", "a", "b", strength=0.7)]
        >>> next(forecast([old, new], ahead=4).stream(seed=0)).strength  # .8, .4, 0, -.4, -.8, ...
        0.0
    """
    if not of:
        raise UserError("records.of: got none, takes pairs of one time or more, the oldest first")
    sources: list[Records] = [texts(one) if isinstance(one, str) else inside(one) for one in of]
    return Forecast(sources[max(0, len(sources) - order - 1) :], ahead, most)


class Forecast(Around):
    """See ``forecast``; as ``records.Records``."""

    useless = "have a vote of 0"

    def __init__(self, sources: Sequence[Records], ahead: int, most: int):
        super().__init__(sources[-1])
        self.sources, self.most = list(sources), most
        self.weights = ahead_weights(len(sources), ahead)
        self.bound = min(float(most), sum(map(abs, self.weights)))
        self.before = [_votes(source) for source in sources[:-1]]

    def digest(self) -> str:
        """That of all times; '' where one of them cannot tell."""
        digests = [source.digest() if isinstance(source, Digested) else "" for source in self.sources]
        return " ".join(digests) if all(digests) else ""

    def _change(self, record: Any) -> Any:
        key, own = _key(record), 2 * _known(record) - 1
        votes = [table.get(key, {}).get(record.first, 0.0) for table in self.before] + [own]
        vote = sum(weight * vote for weight, vote in zip(self.weights, votes, strict=True))
        lot = random.Random(f"forecast {record.position} {record.id}").random()
        if vote == 0 or lot >= min(abs(vote), self.most) / self.bound:
            return None
        return record._replace(strength=float(vote > 0), scores=(math.nan, math.nan), labels={}, ratings=())


def ahead_weights(times: int, ahead: int) -> list[float]:
    """Of the value at each of so many equal steps, in that of the polynomial through all of them, ``ahead`` steps behind the last.

    times: how many. ahead: steps. They add up to 1.

    Examples:
        >>> ahead_weights(2, 1), ahead_weights(3, 1)
        ([-1.0, 2.0], [1.0, -3.0, 3.0])
    """
    places, there = range(times), times - 1 + ahead
    return [math.prod((there - other) / (place - other) for other in places if other != place) for place in places]


def _votes(source: Records) -> dict[Key, dict[Any, float]]:
    """pair -> for each of its outputs, how far this time is for it, -1..1; the mean where a pair is there several times."""
    sums = dict[Key, list[tuple[Any, float]]]()
    for record in _whole(source.stream(seed=0)):
        vote = 2 * _known(record) - 1
        sums.setdefault(_key(record), []).extend([(record.first, vote), (record.second, -vote)])
    means = dict[Key, dict[Any, float]]()
    for key, votes in sums.items():
        own = {output: [vote for other, vote in votes if other == output] for output, _ in votes}
        means[key] = {output: sum(some) / len(some) for output, some in own.items()}
    return means


def _whole(stream: Iterator[Any]) -> Iterator[Any]:
    """Records until one comes again, by its name, or by what it compares where it has none."""
    seen = set[Any]()
    for record in stream:
        name = record.id or _key(record)
        if name in seen:
            return
        seen.add(name)
        yield record


def _key(record: Any) -> Key:
    if not isinstance(record, Pair) or not isinstance(record.first, str) or not isinstance(record.second, str):
        raise UserError(f"records.of: got a {type(record).__name__}, takes pairs of texts")
    return told_apart_by(record.prompt), frozenset({record.first, record.second})


def _known(record: Pair) -> float:
    return 0.5 if math.isnan(record.strength) else record.strength
