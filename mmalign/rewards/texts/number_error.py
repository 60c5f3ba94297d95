"""How far a completion's number is from the true one: measurements, counts, ages, doses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Positive
from mmalign.rewards._shared.completions import against_answers, tagged
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.texts.math_answer import NUMBER, given
from mmalign.types import UserError


def number_error(
    *, most: Positive = 1.0, of: Literal["value", "difference"] = "value", where: Literal["last", "answer", "boxed"] = "last",
    column: Column = "answer",
) -> Scorer:  # fmt: skip
    """``max(0, 1 - error / most)``: 1 for the true number, falling in a line to 0 at an error of ``most``; 0 without a number.

    most: the error from which on nothing is given. of: ``value``, errors as a part of the true number's size, which may not be 0;
    ``difference``, in its units. where: the ``last`` number of the completion, or of ``<answer>...</answer>``, or of ``\\boxed{...}``.
    column: of the prompts, that holds the true number; an empty one has no score: NaN.

    Source: rewards of regression beside ones of classification and boxes, as in Dolphin v1.0's second stage; its formula is not known
    here. Deviations: units are not read, and not converted.

    Errors: UserError for a column that holds no number, and for a true number of 0 where errors are parts of it.

    Examples:
        >>> near = mm.rewards.number_error(most=0.5)
        >>> near(["It measures 9 mm.", "It is 1,000 mm", "no idea"], ["how large?"] * 3, answer=[10, 1000, 10]).tolist()
        [0.8, 1.0, 0.0]
    """
    if of not in ("value", "difference") or where not in ("last", "answer", "boxed"):
        raise UserError(f"number_error: got of={of!r}, where={where!r}, takes value or difference; last, answer or boxed")

    inside: dict[str, Callable[[str], str | None]] = {
        "last": str,
        "answer": lambda text: tagged(text, "answer"),
        "boxed": lambda text: given(text, "boxed"),
    }

    def score(text: str, answer: str) -> float:
        if not answer.strip():
            return math.nan
        true = _number(answer)
        if true is None or (of == "value" and true == 0):
            raise UserError(f"number_error.column: got {answer[:80]!r}, takes a number{' other than 0' if of == 'value' else ''}")
        value = _number(inside[where](text) or "")
        if value is None:
            return 0.0
        return max(0.0, 1 - abs(value - true) / (most * abs(true) if of == "value" else most))

    return against_answers("number_error", score, column)


def _number(text: str) -> float | None:
    """The last number that a text has, finite; fractions as well."""
    last = None
    for match in NUMBER.finditer(text):
        last = match[0]
    if last is None or len(last) > 300:
        return None
    above, _, below = last.replace(",", "").replace("$", "").partition("/")
    if below and not float(below):
        return None
    value = float(above) / (float(below) if below else 1.0)
    return value if math.isfinite(value) else None
