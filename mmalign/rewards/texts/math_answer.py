"""Whether a completion ends in the right answer: LaTeX's ``\\boxed{}``, GSM8K's ``####``, or its last formula or number."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Positive
from mmalign.rewards._shared.completions import answers, texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.symbolic import Comparer
from mmalign.types import UserError

Where = Literal["any", "boxed", "hashes", "last"]
NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
FORMULAS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))  # how LaTeX is set off from words
WORDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\{([^{}]*)\}")
DECIMAL = re.compile(r"[+-]?(?:\d{1,1000}(?:\.\d{0,1000})?|\.\d{1,1000})(?:[eE][+-]?\d{1,3})?")
UNIT = re.compile(r"[\d})\]]\s*(?:\\(?:text|textrm|mathrm|mbox)\{([^{}]{1,40})\}|\s([A-Za-z/]{1,40}))(?:\^\{?(\d)\}?)?$")
LONGEST = 1000  # characters of an answer that mathematics is done on


def math_answer(*, column: Column = "answer", where: Where = "any", seconds: Positive = 3.0) -> Scorer:
    """1 where the answer a completion gives equals its prompt's, 0 where it does not or none is given.

    The prompt's answer is what its last ``\\boxed{}`` holds, or what follows its last ``####`` (whole solutions, as MATH and GSM8K have
    them), or else all of it: ``x^2+1``, ``(3, \\frac{\\pi}{2})``, ``[2, 5)``. An empty one has no score: NaN.

    - Numbers are equal as fractions: ``1,000`` = ``1000.0``, ``\\frac{1}{2}`` = ``.5``, ``50\\%`` = ``50``.
    - Other texts are equal without case, spaces, and LaTeX's ornaments; words, times (``10:30``) and dates are equal in no other way.
    - All else is equal as mathematics: expressions, equations, tuples, sets, intervals, matrices. ``x = 4`` is equal to ``4``. A unit
      (``5 \\text{ cm}``) may be left out, but is not another one: nothing is converted.

    Args:
        column: of the prompts, that holds each one's answer.
        where: what counts as giving an answer: the last ``boxed``, what follows the last ``####`` (``hashes``), the ``last`` formula
            (between dollars, or ``\\(`` and ``\\)``) or number, whichever ends later; or ``any``, the first of these three that is
            there, or the answer and nothing else.
        seconds: of the processor's time, for one comparison as mathematics; one that takes longer counts as wrong, with a warning.

    Equality as mathematics is math-verify's, https://github.com/huggingface/Math-Verify.

    Errors: UserError for prompts without that
    column, and where math-verify is not installed.

    Examples:
        >>> mm.rewards.math_answer()([r"So it is \\boxed{1 + x^2}.", "It is 1."], ["?"] * 2, answer=["x^2 + 1", "x^2 + 1"]).tolist()
        [1.0, 0.0]
    """
    if where not in ("any", "boxed", "hashes", "last"):
        raise UserError(f"math_answer.where: got {where!r}, takes any, boxed, hashes or last")
    comparer = Comparer("math_answer", seconds)
    find = answers("math_answer", column)

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        scores: list[float] = []
        open_rows, pairs = [], []
        for text, answer in zip(texts("math_answer", outputs, prompts), find(prompts, columns), strict=True):
            right, answered = right_answer(answer), given(text, where)
            verdict = at_sight(right, answered, text if where == "any" else "")
            if verdict is None:
                open_rows.append(len(scores))
                pairs.append((_bare(right), _bare(answered or "")))
            scores.append(math.nan if verdict is None else verdict)
        for row, equal in zip(open_rows, comparer.equal(pairs), strict=True):
            scores[row] = float(equal)
        return torch.tensor(scores, dtype=torch.float64)

    return Scorer("math_answer", reward, low=0.0, high=1.0, reads=frozenset({column}))


def right_answer(text: str) -> str:
    """What a data set's answer says: its last box, what follows its last ``####``, or all of it."""
    marked = given(text, "boxed") or given(text, "hashes")
    return text.strip() if marked is None else marked


def given(text: str, where: Where) -> str | None:
    """The answer that a completion gives, as it stands there; None where it gives none."""
    if where in ("any", "boxed") and (inside := _boxed(text)) is not None:
        return inside.strip() or None
    if where in ("any", "hashes") and "####" in text:
        return text.rpartition("####")[2].strip().split("\n")[0].strip() or None
    return _last(text) if where in ("any", "last") else None


def at_sight(right: str, answer: str | None, whole: str) -> float | None:
    """1 or 0 where no mathematics is needed to say so, NaN without a right answer; None where it is.

    whole: the completion, where that may be the answer and nothing else.
    """
    wanted = plain(right)
    if wanted == "":
        return math.nan
    if whole and plain(whole) == wanted:
        return 1.0
    if answer is None:
        return 0.0
    got = plain(answer)
    if got == wanted:
        return 1.0
    if isinstance(got, Fraction) and isinstance(wanted, Fraction) and not ("%" in right or "%" in answer):
        return 0.0
    if any(_is_words(text) or len(text) > LONGEST or _unbalanced(text) for text in (right, answer)):
        return 0.0
    units = _unit(right), _unit(answer)
    return 0.0 if all(units) and units[0] != units[1] else None


def plain(text: str) -> Fraction | str:
    """A number as a fraction; other text without case, spaces and ornaments."""
    if len(text) > 4 * LONGEST:
        return text
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", text) if _is_fraction(text) else text.replace("\\dfrac", "\\frac")
    text = WORDS.sub(r"\1", text)
    text = re.sub(r"\\left|\\right|\\[!,;: ]|\\?[$%]|\s", "", text).removesuffix(".").casefold()
    top, slash, bottom = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text).partition("/")
    if DECIMAL.fullmatch(top) is None or (slash and DECIMAL.fullmatch(bottom) is None):
        return text
    try:
        return Fraction(top) / Fraction(bottom) if slash else Fraction(top)
    except ZeroDivisionError:
        return text


def _is_fraction(text: str) -> bool:
    return re.fullmatch(r"[\s$-]*\\[dt]?frac\{[^{}]*\}\{[^{}]*\}[\s$%.\\]*", text) is not None


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


def _last(text: str) -> str | None:
    """The last formula or the last number of a text, whichever ends later."""
    ends, last = -1, None
    for match in NUMBER.finditer(text):
        ends, last = match.end(), match[0].strip()
    for opens, closes in FORMULAS:
        end = text.rfind(closes)
        start = text.rfind(opens, 0, max(end, 0))
        if end >= ends and start >= 0 and (inside := text[start + len(opens) : end].strip()):
            ends, last = end + 1, inside
    return last


def _is_words(text: str) -> bool:
    """Whether a text is words, a time or a date, on which mathematics would see a product of letters, a ratio or a difference."""
    text = WORDS.sub(r"\1", text).strip(" .$")
    return re.fullmatch(r"[^\W\d_][^\W\d_][\w\s'-]*|\d+(?::\d+)+|\d{1,4}-\d{1,2}-\d{1,4}|\d{1,4}/\d{1,2}/\d{1,4}", text) is not None


def _unbalanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return True
    return depth != 0 or "\\boxed" in text


def _unit(text: str) -> str:
    """The unit that a quantity ends with, as it is written; empty where there is none."""
    match = UNIT.search(text.strip(" .$"))
    return "" if match is None else f"{(match[1] or match[2]).replace(' ', '')}^{match[3] or 1}"


def _bare(text: str) -> str:
    """An answer without the dollars that set it off, which a box does not need."""
    return text.replace("$", "").strip()
