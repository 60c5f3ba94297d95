"""Preference data turned round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmalign.data._reading.around import Around, inside
from mmalign.records import Pair, Record, Records, Thumb


def turned(of: Records | Sequence[Record]) -> Turned:
    """The same records with every label reversed: the worse output is the better one, and thumbs up are down.

    A policy that learns from these models what people do not want, for the negative branch of guidance (Diffusion-NPO,
    https://arxiv.org/abs/2505.11245; ``mm.guidance.npo``). Ties stay ties, and words marked as wrong are left out.

    of: pairs, thumbs or rankings.

    Examples:
        >>> from mmalign.records import Pair
        >>> next(turned([Pair("a fox", 0, 1, strength=0.75)]).stream(seed=0)).strength
        0.25
    """
    return Turned(inside(of))


class Turned(Around):
    """See ``turned``; as ``records.Records``."""

    def _change(self, record: Any) -> Any:
        if isinstance(record, Pair):
            first, second = record.scores
            labels = {name: 1 - p for name, p in record.labels.items()}
            turned = record._replace(strength=1 - record.strength, scores=(-first, -second), labels=labels, ratings=_negative(record))
            return turned._replace(wrong=None)
        if isinstance(record, Thumb):
            return record._replace(label=1 - record.label, ratings=_negative(record))
        return record._replace(scores=tuple(-score for score in record.scores), ratings=_negative(record))


def _negative(record: Any) -> tuple[dict[str, float], ...]:
    return tuple({name: -rating for name, rating in ratings.items()} for ratings in record.ratings)
