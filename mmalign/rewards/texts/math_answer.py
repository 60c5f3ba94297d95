"""Whether a completion ends in the right number: LaTeX's ``\\boxed{}``, GSM8K's ``####``, or the last number."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Literal

from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

Where = Literal["any", "boxed", "hashes", "last"]
NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")


def math_answer(*, column: str = "answer", where: Where = "any") -> Scorer:
    """1 where the answer a completion gives equals its prompt's, 0 where it does not or none is given.

    Args:
        column: of the prompts, that holds each one's answer (whole solutions, as GSM8K has them, are read the same way as completions).
        where: what counts as giving an answer: the last ``boxed``, what follows the last ``####`` (``hashes``), the ``last`` number; or
            ``any``, the first of these three that is there.

    Numbers are equal as fractions (``1,000`` = ``1000.0``, ``\\frac{1}{2}`` = ``.5``); all else is equal as text without spaces and
    LaTeX's ornaments: no algebra is done, and no units are converted. An answer of the data's without a value is NaN.
    Errors: UserError for prompts without that column.
    """
    if where not in ("any", "boxed", "hashes", "last"):
        raise UserError(f"math_answer.where: got {where!r}, takes any, boxed, hashes or last")

    def score(text: str, answer: str) -> float:
        wanted = given(answer, "any")
        wanted = plain(answer) if wanted is None else wanted
        return math.nan if wanted == "" else float(given(text, where) == wanted)

    return against_answers("math_answer", score, column)


def given(text: str, where: Where) -> Fraction | str | None:
    """The answer that a text gives, as a number where it is one; None where it gives none."""
    if where in ("any", "boxed") and (inside := _boxed(text)) is not None:
        return plain(inside) or None
    if where in ("any", "hashes") and "####" in text:
        return plain(text.rpartition("####")[2].strip().split("\n")[0]) or None
    if where in ("any", "last") and (numbers := NUMBER.findall(text)):
        return plain(numbers[-1])
    return None


def _boxed(text: str) -> str | None:
    """What the last ``\\boxed{...}`` holds, braces balanced."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for place in range(start + 6, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 7 : place]
    return None


def plain(text: str) -> Fraction | str:
    """A number as a fraction; other text without spaces and ornaments."""
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\left|\\right|\\[!,;: ]|\\?[$%]|\s", "", text).removesuffix(".")
    number = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        top, _, bottom = number.partition("/")
        try:
            return Fraction(top) / Fraction(bottom)
        except (ValueError, ZeroDivisionError):
            return text
