"""Whether a completion has the form that was asked for: a regular expression."""

from __future__ import annotations

import re

from mmalign.rewards._shared.completions import on_texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

THINK = r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*"


def format(pattern: str = THINK, *, whole: bool = True) -> Scorer:
    """1 where a completion matches a regular expression (``.`` matches line breaks too), 0 where it does not.

    pattern: of Python's ``re``; by default the form of DeepSeek-R1, https://arxiv.org/abs/2501.12948: ``<think>`` and ``<answer>`` once
    each, in this order. whole: all of it has to match; or it is enough that some of it does.
    Errors: UserError for what is no regular expression.

    Examples:
        >>> mm.rewards.format()(["<think>2 + 2</think><answer>4</answer>", "4"], ["2 + 2?"] * 2).tolist()
        [1.0, 0.0]
        >>> mm.rewards.format(r"[0-9]+", whole=False)(["It is 4.", "four"], ["2 + 2?"] * 2).tolist()
        [1.0, 0.0]
    """
    try:
        found = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"format.pattern: {pattern!r} is no regular expression: {error}") from error
    match = found.fullmatch if whole else found.search
    once = [tag for tag in ("<think>", "</think>", "<answer>", "</answer>") if pattern == THINK]
    return on_texts("format", lambda text: float(match(text) is not None and all(text.count(tag) == 1 for tag in once)), low=0.0, high=1.0)
