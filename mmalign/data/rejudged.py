"""Preference data judged again, by rewards: how strong a preference is, and whether it is right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.data._reading.around import Around, decoded_pair, inside
from mmalign.records import Author, Pair, Record, Records, prompts_of
from mmalign.types import UserError


def rejudged(
    of: Records | Sequence[Record], *, rewards: Mapping[str, Callable[..., Any]], combine: Callable[..., Any] | None = None,
    label: Literal["keep", "flip", "soft", "hard"] = "keep", scale: Positive = 1.0, least: NotNegative = 0.0,
) -> Rejudged:  # fmt: skip
    """Pairs with what rewards say of both outputs as their scores, ``mu = R(first) - R(second)``, and labels that follow it or not.

    Args:
        of: pairs.
        rewards: name -> reward, such as reward models that were trained before (``{use: trained, run: ...}``), of other seeds each.
        combine: how they become one number R; their sum by default. ``{use: lower_bound, k: 0}`` is their mean, and
            ``{use: lexicographic, order: {NAME: MARGIN}}`` HERON's hierarchy, of which ``label: hard`` makes labels.
        label: ``keep``, as it is; ``flip``, turned round where mu speaks against it by more than ``least``; ``soft``, ``sigmoid(mu /
            scale)``; ``hard``, who is ahead by more than ``least``, and a tie where nobody is.
        scale: of mu in a soft label, in units of R.
        least: of mu, in units of R.

    ``method: {use: bradley_terry, margin: 1.0}`` then has the adaptive margin of Secrets of RLHF II, mean mu of an ensemble. A pair of
    which a reward has no score has no scores; its label stays, or says nothing where it would have come from them.

    Paper: Secrets of RLHF in Large Language Models Part II: Reward Modeling, arXiv 2401.06080, sec. 2 (preference strength, flips, soft
    labels, margin); HERON, arXiv 2309.02632.

    Errors: UserError without a reward, for another label, and for records that are no pairs.
    """
    if not rewards:
        raise UserError("records.rewards: got none, takes one or more")
    return Rejudged(inside(of), dict(rewards), combine, label, scale, least)


class Rejudged(Around):
    """See ``rejudged``; as ``records.Records``. by: nobody draws."""

    by: str | None = None

    def __init__(
        self, source: Records, rewards: dict[str, Callable[..., Any]], combine: Callable[..., Any] | None, label: str, scale: float,
        least: float,
    ):  # fmt: skip
        super().__init__(source)
        self.rewards, self.combine, self.label, self.scale, self.least = rewards, combine, label, scale, least

    def _change(self, record: Any) -> Any:
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        return record

    def finished(self, records: list[Any], author: Author) -> list[Any]:
        """As in ``records.Unfinished``."""
        usable = {place: pair for place, record in enumerate(records) if (pair := decoded_pair(record)) is not None}
        if not usable:
            return records  # of which the recipe finds out when it encodes the rows
        pairs = list(usable.values())
        rows, prompts = (
            [output for pair in pairs for output in (pair.first, pair.second)],
            [prompt for pair in pairs for prompt in prompts_of(pair)],
        )
        group = [place for place in range(len(pairs)) for _ in "ab"]
        scores = author.rewards(self.rewards, self.combine, prompts, rows, group, {})
        judged = list(records)
        for (place, pair), first, second in zip(usable.items(), scores[0::2], scores[1::2], strict=True):
            judged[place] = pair._replace(scores=(first, second), strength=self._strength(pair.strength, first - second))
        return judged

    def settled(self, records: list[Any]) -> list[Any]:
        """As in ``records.Unfinished``."""
        return records

    def _strength(self, given: float, mu: float) -> float:
        if self.label == "flip":
            return 1 - given if abs(mu) > self.least and (given - 0.5) * mu < 0 else given
        if self.label == "soft":
            return 1 / (1 + math.exp(-max(-700.0, min(700.0, mu / self.scale)))) if mu == mu else math.nan
        if self.label == "hard" and mu == mu:
            return 0.5 if abs(mu) <= self.least else float(mu > 0)
        return math.nan if self.label == "hard" else given
