"""Pairs as demonstrations of how an answer is made better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmalign.conversations import MADE_BETTER, answer_of, said_after
from mmalign.data._reading.around import Doubled, inside, refuse_two_prompts
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.types import UserError


def rewritten(of: Records | Sequence[Record], *, words: str = MADE_BETTER) -> Rewritten:
    """Two demonstrations of every pair: the worse answer is rewritten as the better one, and the better one is left as it is.

    ``(x, y_l) -> y_w`` and ``(x, y_w) -> y_w``, for a language model that is trained on them (``method: {use: sft}``): feedback in words,
    of which the reward ``rewriting`` makes scores of single words.

    of: pairs of texts. A label that is not sure counts as much as it is; of a tie either answer is left, half as much.
    words: what is put behind the last thing that the prompt's user says; ``{answer}`` is the answer that is shown.

    Paper: Sequence to Sequence Reward Modeling: Improving RLHF by Language Feedback, arXiv 2409.00162 (recalled).

    Errors: UserError for words without ``{answer}``, and for a record that is no pair of texts.

    Examples:
        >>> from mmalign.records import Pair
        >>> stream = rewritten([Pair("Why?", "because", "no")], words=" [{answer}]").stream(seed=0)
        >>> [(one.prompt, one.output) for one in (next(stream), next(stream))]
        [('Why? [no]', 'because'), ('Why? [because]', 'because')]
    """
    if "{answer}" not in words:
        raise UserError(f"records.words: got {words!r}, takes words with {{answer}} in them")
    return Rewritten(inside(of), words)


class Rewritten(Doubled):
    """See ``rewritten``; as ``records.Records``."""

    def __init__(self, source: Records, words: str):
        super().__init__(source)
        self.words = words

    def _halves(self, record: Any) -> tuple[Thumb, Thumb]:
        refuse_two_prompts(record)
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        better, worse = (record.first, record.second) if record.strength >= 0.5 else (record.second, record.first)
        label, tie = max(record.strength, 1 - record.strength), record.strength == 0.5
        shown, left = (better, worse) if tie else (worse, better)
        return self._made(record, shown, better, label), self._made(record, left, left, label)

    def _made(self, pair: Pair, shown: Any, output: Any, label: float) -> Thumb:
        text = shown if isinstance(shown, str) else answer_of(shown)
        if text is None:
            raise UserError(f"records.of: {pair.id or 'a pair'} holds a {type(shown).__name__}, takes pairs of texts")
        prompt = said_after(pair.prompt, self.words.replace("{answer}", text))
        return Thumb(prompt, output, label, pair.id, annotator=pair.annotator)
