"""A calculator."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.environments._parts import Tool

LARGEST = 10**30
NONE = "is no expression of numbers"
# sign -> how tightly it binds, and what it does; ** and signs in front of a number wait for what stands to the right of them
BINARY: dict[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "+": (1, operator.add), "-": (1, operator.sub), "*": (2, operator.mul), "/": (2, operator.truediv), "//": (2, operator.floordiv),
    "%": (2, operator.mod), "**": (4, operator.pow),
}  # fmt: skip
UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "+": operator.pos}
FRONT = 3
TOKEN = re.compile(r"\s*(?:(0[xXoObB]\w+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d[\d_]*)?)|(\*\*|//|[-+*/%()]))", re.ASCII)


def calculator(*, operations: Count | None = None) -> Tool:
    """Tool: the value of an expression of numbers, ``+ - * / // % **`` and parentheses. Nothing else is read, and nothing is run.

    It raises (and so answers, see ``tools``) what is wrong with an expression: its form, too many operations, numbers beyond 1e30.

    operations: that one expression may hold; None for any number.

    Examples:
        >>> calculate = mm.environments.calculator(operations=2)
        >>> calculate("13 * 14 + 87"), calculate("(1 + 2) / 4"), calculate("2 * -3")
        ('269', '0.75', '-6')
        >>> calculate("1 + 2 + 3 + 4")
        Traceback (most recent call last):
        ValueError: holds 3 operations, takes at most 2
    """

    def calculate(expression: str) -> str:
        """The value of an expression of numbers."""
        steps = _steps(expression)
        count = sum(step in BINARY for step in steps)
        if operations is not None and count > operations:
            raise ValueError(f"holds {count} operations, takes at most {operations}")
        return str(_value(steps))

    return calculate


def _steps(expression: str) -> list[Any]:
    """Numbers, and behind what they are of, operations: ``2 * -3`` is 2, 3, ("-",), "*" (Dijkstra's shunting yard).

    Not by ``ast.parse``: in Python before 3.11.8 it fails at times where several threads call it, as tools do. Errors: ValueError.
    """
    steps, waiting, ahead, place = list[Any](), list[Any](), True, 0  # ahead: a number is due
    expression = expression.strip()
    while place < len(expression):
        token = TOKEN.match(expression, place)
        if token is None:
            raise ValueError(NONE)
        number, sign = token.groups()
        place = token.end()
        if (number is not None or sign == "(" or (ahead and sign in UNARY)) != ahead:
            raise ValueError(NONE)
        if number is not None:
            steps.append(_number(number))
            ahead = False
        elif ahead:
            waiting.append(sign if sign == "(" else (sign,))
        elif sign == ")":
            while waiting and waiting[-1] != "(":
                steps.append(waiting.pop())
            if not waiting:
                raise ValueError(NONE)
            waiting.pop()
        else:
            while waiting and _binds(waiting[-1]) >= BINARY[sign][0] + (sign == "**"):
                steps.append(waiting.pop())
            waiting.append(sign)
            ahead = True
    if ahead or "(" in waiting:
        raise ValueError(NONE)
    return steps + waiting[::-1]


def _binds(waiting: Any) -> int:
    if isinstance(waiting, tuple):
        return FRONT
    return 0 if waiting == "(" else BINARY[waiting][0]


def _number(text: str) -> int | float:
    """As Python reads it. Errors: ValueError."""
    whole = text[:2].lower() in ("0x", "0o", "0b") or not set(text) & set(".eE")
    try:
        return int(text, 0) if whole else float(text)
    except ValueError:
        raise ValueError(NONE) from None


def _value(steps: list[Any]) -> int | float:
    values = list[Any]()
    for step in steps:
        if isinstance(step, tuple):
            result = UNARY[step[0]](values.pop())
        elif isinstance(step, str):
            right, left = values.pop(), values.pop()
            if step == "**" and abs(right) > 100:
                raise ValueError("has a power above 100")
            result = BINARY[step][1](left, right)
        else:
            result = step
        values.append(_bounded(result))
    return values[0]  # type: ignore[no-any-return]


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex) or not abs(value) <= LARGEST:
        raise ValueError("leads to a number beyond 1e30")
    return value  # type: ignore[no-any-return]
