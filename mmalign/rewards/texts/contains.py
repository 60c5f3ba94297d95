"""Whether a completion has its prompt's answer in it."""

from __future__ import annotations

import re

from mmalign.arguments.columns import Column
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer


def contains(*, column: Column = "answer", case: bool = False) -> Scorer:
    """1 where the answer stands in a completion as whole words, whatever stands around it, 0 where it does not.

    A completion that names many things is right by it too: it takes another reward beside it, such as ``length``, and a judge that is
    stricter, such as ``exact_match``. An answer without a letter is in nothing.
    column: of the prompts, that holds each one's answer. case: whether it counts.

    Errors: UserError for prompts without that column.

    Examples:
        >>> contains()(["It is The  Hague.", "Haguenau", "hague, Paris"], ["Where?"] * 3, answer=["The Hague", "Hague", "Hague"]).tolist()
        [1.0, 0.0, 1.0]
    """

    def score(text: str, answer: str) -> float:
        words = answer.split()
        pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
        return float(bool(words) and re.search(pattern, text, 0 if case else re.IGNORECASE) is not None)

    return against_answers("contains", score, column)
