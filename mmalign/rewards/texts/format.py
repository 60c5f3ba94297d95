"""Whether a completion has the form that was asked for: a regular expression."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.rewards._shared.completions import Pattern, on_texts, once_each
from mmalign.rewards._shared.scorer import Scorer

THINK = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"


def format(pattern: str = THINK, *, whole: bool = True, seconds: Positive = 1.0) -> Scorer:
    """1 where a completion matches a regular expression (``.`` matches line breaks too), 0 where it does not.

    pattern: of Python's ``re`` and of ``regex``, which is what runs it; by default the form of DeepSeek-R1,
    https://arxiv.org/abs/2501.12948: ``<think>`` and ``<answer>`` once each, in this order. whole: all of it has to match; or it is
    enough that some of it does. seconds: for one completion; one that takes longer does not match, with a warning.
    Errors: UserError for what is no regular expression.

    Examples:
        >>> mm.rewards.format()(["<think>2 + 2</think><answer>4</answer>", "4"], ["2 + 2?"] * 2).tolist()
        [1.0, 0.0]
        >>> mm.rewards.format(r"[0-9]+", whole=False)(["It is 4.", "four"], ["2 + 2?"] * 2).tolist()
        [1.0, 0.0]
    """
    form = Pattern("format.pattern", pattern, seconds)
    how: Literal["fullmatch", "search"] = "fullmatch" if whole else "search"

    def score(text: str) -> float:
        return float(once_each(text, ("think", "answer")) if pattern == THINK and whole else form.matches(text, how))

    return on_texts("format", score, low=0.0, high=1.0)
