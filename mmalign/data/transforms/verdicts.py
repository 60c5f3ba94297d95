"""Pairs as demonstrations of how answers are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmalign.conversations import COMPARED, answer_of, compares, said_after, shown_in
from mmalign.data._reading.around import Around, Doubled, inside, refuse_two_prompts
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.types import UserError


def verdicts(of: Records | Sequence[Record], *, words: str = COMPARED, say: Sequence[str] = ("A", "B")) -> Verdicts:
    """Two demonstrations of every pair for a language model that is to judge answers, its own too (``oracle: {use: own_verdicts}``).

    Words that show two answers are asked in both orders, ``(x, y_w, y_l) -> say[0]`` and ``(x, y_l, y_w) -> say[1]``, so that a place
    tells nothing; words that show one are asked about each, ``(x, y_w) -> say[0]`` and ``(x, y_l) -> say[1]``.

    of: pairs of texts. A label that is not sure counts as much as it is; ties are passed over. words: what is put behind the last thing
    that the prompt's user says, with ``{first}`` and ``{second}`` in it, or with ``{answer}``. say: what the model says of the first
    of two, or of one, that is better, and of one that is worse.

    Paper: Online Self-Preferring Language Models, arXiv 2405.14103 (whose judge is the model itself; these words are ours).

    Errors: UserError for words that show nothing, for two sayings that are the same, and for a record that is no pair of texts.

    Examples:
        >>> from mmalign.records import Pair
        >>> stream = verdicts([Pair("Why?", "because", "no")], words=" A: {first} B: {second}").stream(seed=0)
        >>> [(one.prompt, one.output) for one in (next(stream), next(stream))]
        [('Why? A: because B: no', 'A'), ('Why? A: no B: because', 'B')]
    """
    return Verdicts(Decided(inside(of)), words, compares("records", words, say), say)


class Decided(Around):
    """Pairs of which one answer is said to be the better one."""

    useless = "are ties"

    def _change(self, record: Any) -> Any:
        return None if isinstance(record, Pair) and record.strength == 0.5 else record


class Verdicts(Doubled):
    """See ``verdicts``; as ``records.Records``."""

    def __init__(self, source: Records, words: str, both: bool, say: Sequence[str]):
        super().__init__(source)
        self.words, self.both, self.say = words, both, say

    def _halves(self, record: Any) -> tuple[Thumb, Thumb]:
        refuse_two_prompts(record)
        if not isinstance(record, Pair):
            raise UserError(f"records.of: got a {type(record).__name__}, takes pairs")
        better, worse = (self._text(record, one) for one in (record.first, record.second))
        if record.strength < 0.5:
            better, worse = worse, better
        if self.both:
            shown = {"first": better, "second": worse}, {"first": worse, "second": better}
        else:
            shown = {"answer": better}, {"answer": worse}
        label = max(record.strength, 1 - record.strength)
        asked = [said_after(record.prompt, shown_in(self.words, answers)) for answers in shown]
        first, second = (Thumb(*one, label, record.id, annotator=record.annotator) for one in zip(asked, self.say, strict=True))
        return first, second

    @staticmethod
    def _text(pair: Pair, output: Any) -> str:
        text = output if isinstance(output, str) else answer_of(output)
        if text is None:
            raise UserError(f"records.of: {pair.id or 'a pair'} holds a {type(output).__name__}, takes pairs of texts")
        return text
