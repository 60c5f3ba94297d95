"""Whether a completion is its prompt's answer, word for word."""

from __future__ import annotations

import re

from mmalign.arguments.columns import Column
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer

AROUND = re.compile(r"^\W+|\W+$")


def exact_match(*, column: Column = "answer", case: bool = False, punctuation: bool = True) -> Scorer:
    """1 where a completion is the answer, 0 where it is not; spaces at the ends and their number in between do not count.

    column: of the prompts, that holds each one's answer. case: whether it counts. punctuation: whether what stands before the first letter
    or digit and after the last one counts: without it ``Paris.`` is ``Paris``.

    Errors: UserError for prompts without that column.

    Examples:
        >>> exact_match()([" The  Hague", "Hague"], ["Where?", "Where?"], answer=["the hague", "The Hague"]).tolist()
        [1.0, 0.0]
        >>> exact_match(case=True)(["the hague"], ["Where?"], answer=["The Hague"]).tolist()
        [0.0]
        >>> exact_match(punctuation=False)(['"Paris."', "In Paris."], ["Where?"] * 2, answer=["Paris"] * 2).tolist()
        [1.0, 0.0]
    """

    def plain(text: str) -> str:
        text = " ".join(text.split())
        text = text if punctuation else AROUND.sub("", text)
        return text if case else text.casefold()

    return against_answers("exact_match", lambda text, answer: float(plain(text) == plain(answer)), column)
