"""Whether a completion is its prompt's answer, word for word."""

from __future__ import annotations

from mmalign.rewards._shared.completions import against_answers, answers
from mmalign.rewards._shared.scorer import Scorer


def exact_match(path: str | None = None, *, key: str = "prompt", column: str = "answer", case: bool = False) -> Scorer:
    """1 where a completion is the answer, 0 where it is not; spaces at the ends and their number in between do not count.

    path: JSON lines with a prompt under ``key`` and its answer under ``column``; without it, answers come with the call, as the
    column of that name. case: whether it counts.
    Errors: UserError for a file that cannot be read, and for a prompt without an answer.
    """

    def plain(text: str) -> str:
        text = " ".join(text.split())
        return text if case else text.casefold()

    find = answers("exact_match", path, key=key, column=column)
    return against_answers("exact_match", lambda text, answer: float(plain(text) == plain(answer)), find)
