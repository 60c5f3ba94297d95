"""Whether a completion knows what a program's variables hold."""

from __future__ import annotations

import json
from typing import Any

from mmalign.arguments.columns import Column
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def variable_values(*, column: Column = "values") -> Scorer:
    """The part of a program's variables whose values a completion says, in 0..1.

    A completion says them as an object of JSON, ``{"total": 6, "names": ["a"]}``: the last one that stands in it. A value counts where it
    is equal, 1 and 1.0 are; one of a variable that nobody asked for counts for nothing.

    column: of the prompts, that holds each one's values, an object of JSON (``make_value_prompts`` writes it).

    Paper: CodeRL+: Improving Code Generation via Reinforcement with Execution Semantics Alignment, https://arxiv.org/abs/2510.18471
    (*recalled*: the model infers the values of variables along the execution of its own programs).

    Errors: UserError for prompts without that column, and for values that are no object.

    Examples:
        >>> variable_values()(['It is {"a": 3, "b": 1}', "no"], ["?", "?"], values=['{"a": 3, "b": 2}'] * 2).tolist()
        [0.5, 0.0]
    """

    def score(text: str, answer: str) -> float:
        wanted = _object(answer)
        if not wanted:
            raise UserError(f"variable_values.column: got {answer[:80]!r}, takes an object of JSON with at least one variable")
        said = _last_object(text)
        return sum(name in said and _same(said[name], value) for name, value in wanted.items()) / len(wanted)

    return against_answers("variable_values", score, column)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _last_object(text: str) -> dict[str, Any]:
    """The widest object of JSON that ends at a text's last closing brace, of the last 20 that open before it."""
    end, found = text.rfind("}") + 1, dict[str, Any]()
    start = end
    for _ in range(20):
        start = text.rfind("{", 0, start)
        if start < 0:
            break
        found = _object(text[start:end]) or found
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal as values, with truth no number."""
    return type(one) is type(other) and one == other if bool in (type(one), type(other)) else one == other
