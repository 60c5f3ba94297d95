"""Pairs whose prompt asks for a score: each answer wins where it is asked for its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmalign.conversations import said_after
from mmalign.data._reading.around import Doubled, inside, refuse_two_prompts
from mmalign.records import Pair, Record, Records
from mmalign.types import UserError


def conditioned(of: Records | Sequence[Record], *, words: str = " Answer with a score of {score:.3g}.") -> Conditioned:
    """Every scored pair twice: ``(x, g = r_w): w > l`` and ``(x, g = r_l): l > w``, so that no answer is only good or bad.

    of: pairs with a score of both answers (``score_chosen``, ``score_rejected``, or what ``rejudged`` finds beforehand). words: what is put
    behind the last thing that the prompt's user says; ``{score}`` is the score, in Python's format. A prompt at inference asks for a high
    one.

    Paper: Reward-Augmented Data Enhances Direct Preference Alignment of LLMs, https://arxiv.org/abs/2410.08067, eq. 3. With ``method: {use:
    dpo}`` it is theirs; any other method for pairs does. Labels stay what they were: a soft one is turned round with the pair.

    Errors: UserError for words without ``{score}``, and for a record that is no pair or has no scores.

    Examples:
        >>> from mmalign.records import Pair
        >>> stream = conditioned([Pair("Why?", "because", "no", scores=(4.0, 1.5))], words=" [{score}]").stream(seed=0)
        >>> [(pair.prompt, pair.first, pair.strength) for pair in (next(stream), next(stream))]
        [('Why? [4.0]', 'because', 1.0), ('Why? [1.5]', 'because', 0.0)]
    """
    try:
        silent = words.format(score=1.25) == words.format(score=-7.5)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"records.words: got {words!r}, takes words with {{score}} in Python's format: {error}") from error
    if silent:
        raise UserError(f"records.words: got {words!r}, takes words with {{score}} in them")
    return Conditioned(inside(of), words)


class Conditioned(Doubled):
    """See ``conditioned``; as ``records.Records``."""

    def __init__(self, source: Records, words: str):
        super().__init__(source)
        self.words = words

    def _halves(self, record: Any) -> tuple[Pair, Pair]:
        refuse_two_prompts(record)
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        if any(math.isnan(score) for score in record.scores):
            raise UserError(f"records.of: {record.id or 'a pair'} has no scores, for which its prompt would ask; takes pairs with both")
        high, low = (said_after(record.prompt, self.words.format(score=score)) for score in record.scores)
        turned = {name: 1 - p for name, p in record.labels.items()}
        if record.strength < 0.5:  # the second is the better one: its own prompt lets it win
            high, low = low, high
        return record._replace(prompt=high), record._replace(prompt=low, strength=1 - record.strength, labels=turned, wrong=None)
