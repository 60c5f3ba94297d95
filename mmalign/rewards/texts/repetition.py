"""How little a completion repeats itself."""

from __future__ import annotations

import math

from mmalign.arguments.ranges import Count
from mmalign.rewards._shared.completions import on_texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

__all__ = ["distinct_part", "repetition"]


def repetition(*, n: Count = 3, case: bool = False) -> Scorer:
    """In 0..1: the part of a completion's runs of ``n`` words that are different ones; 1 for one that says nothing twice.

    A completion of fewer than ``n`` words repeats nothing: 1, so that this alone pays for silence; combine it with ``length`` or others.
    n: words of a run. case: whether it counts. Prompts are not read.
    Paper: the repetition penalty of Regularized Relevance Reward, https://arxiv.org/abs/2402.03469 (trigrams).

    Errors: UserError for an ``n`` below 1.

    Examples:
        >>> mm.rewards.repetition(n=1)(["a b c d", "a b a b"], ["say letters"] * 2).tolist()
        [1.0, 0.5]
    """
    if n < 1:
        raise UserError(f"repetition.n: got {n}, takes 1 or more words")

    def score(text: str) -> float:
        part = distinct_part(text if case else text.casefold(), n)
        return 1.0 if math.isnan(part) else part

    return on_texts("repetition", score, low=0.0, high=1.0)


def distinct_part(text: str, n: Count) -> float:
    """Different runs of ``n`` words over all runs of ``n`` words of a text; NaN where it has fewer than ``n``.

    text: words between spaces. n: words of a run.
    """
    words = text.split()
    runs = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(runs)) / len(runs) if runs else math.nan
