"""What rewards on texts share: completions as strings, and the answers that columns of the prompts hold."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import regex
import torch
from torch import Tensor

from mmalign.conversations import answer_of
from mmalign.rewards._shared.scorer import Scorer, column_of
from mmalign.types import UserError

Find = Callable[[list[Any], Mapping[str, Any]], list[str]]


def on_texts(name: str, score: Callable[[str], float], *, low: float | None = None, high: float | None = None) -> Scorer:
    """A scorer of single completions; prompts are not read. Errors: UserError for outputs that are no texts."""
    return Scorer(
        name, lambda outputs, prompts, **columns: _scores(score(text) for text in texts(name, outputs, prompts)), low=low, high=high
    )


def against_answers(name: str, score: Callable[[str, str], float], column: str) -> Scorer:
    """A scorer of completions against each prompt's answer, which a column holds, in 0..1 (NaN where it cannot be judged)."""
    find = answers(name, column)

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        pairs = zip(texts(name, outputs, prompts), find(prompts, columns), strict=True)
        return _scores(score(text, answer) for text, answer in pairs)

    return Scorer(name, reward, low=0.0, high=1.0, reads=frozenset({column}))


def _scores(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def texts(name: str, outputs: Any, prompts: Sequence[Any]) -> list[str]:
    """Completions as strings; of turns, what the assistant said last."""
    strings = [output if isinstance(output, str) else answer_of(output) for output in outputs]
    if any(text is None for text in strings):
        odd = next(output for output, text in zip(outputs, strings, strict=True) if text is None)
        raise UserError(f"{name}: got an output that is a {type(odd).__name__}, takes completions: strings, or turns of the assistant's")
    if len(strings) != len(prompts):
        raise UserError(f"{name}: got {len(strings)} completions for {len(prompts)} prompts, takes one for each")
    return [text for text in strings if text is not None]


def as_text(answer: Any) -> str:
    """An answer of a data set as a string: lists and objects as JSON."""
    return json.dumps(answer, ensure_ascii=False) if isinstance(answer, (list, tuple, dict)) else str(answer)


def answers(name: str, column: str) -> Find:
    """(prompts, columns) -> what the column of that name holds for each prompt, as a string: lists and objects as JSON.

    Errors: UserError that names the columns there are, where that one is not among them.
    """

    def find(prompts: list[Any], columns: Mapping[str, Any]) -> list[str]:
        return [as_text(answer) for answer in column_of(name, column, columns)]

    return find


# ---- what stands where in a text, in time that grows with its length and no faster: a model writes it


def tagged(text: str, tag: str) -> str | None:
    """What stands in the last ``<tag>...</tag>``, without spaces at its ends; None where there is none."""
    opens, closes, inside, place = f"<{tag}>", f"</{tag}>", None, 0
    while (start := text.find(opens, place)) >= 0 and (end := text.find(closes, start)) >= 0:
        inside, place = text[start + len(opens) : end].strip(), end + len(closes)
    return inside


def once_each(text: str, tags: Sequence[str]) -> bool:
    """Whether a text is ``<tag>...</tag>`` of these tags in this order and nothing else, each of them once."""
    place = 0
    for tag in tags:
        opens, closes = f"<{tag}>", f"</{tag}>"
        if text.count(opens) != 1 or text.count(closes) != 1:
            return False
        start, end = text.find(opens), text.find(closes)
        if start < place or end < start or text[place:start].strip():
            return False
        place = end + len(closes)
    return not text[place:].strip()


class Pattern:
    """A user's regular expression on texts of a model, which a ``.`` reads across lines; no text holds it for longer than it may.

    owner: who is named in messages. seconds: for one text; one that takes longer does not match, which is said in a warning.
    Errors: UserError for what is no regular expression.
    """

    def __init__(self, owner: str, pattern: str, seconds: float) -> None:
        if not seconds > 0:
            raise UserError(f"{owner.partition('.')[0]}.seconds: got {seconds}, takes more than 0")
        try:
            self._compiled = regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise UserError(f"{owner}: {pattern!r} is no regular expression: {error}") from error
        self.owner, self.seconds = owner, seconds

    def matches(self, text: str, how: Literal["fullmatch", "search"]) -> bool:
        """Whether all of a text matches, or some of it."""
        match = self._compiled.fullmatch if how == "fullmatch" else self._compiled.search
        try:
            return match(text, timeout=self.seconds) is not None
        except TimeoutError:
            warnings.warn(
                f"{self.owner}: took more than {self.seconds:g} s on a text, which counts as no match: {text[:80]!r}", stacklevel=2
            )
            return False
