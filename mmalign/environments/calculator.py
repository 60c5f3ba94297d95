"""A calculator."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.environments._parts import Tool

LARGEST = 10**30
OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


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
        try:
            tree = ast.parse(expression.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError("is no expression of numbers") from None
        count = sum(isinstance(node, ast.BinOp) for node in ast.walk(tree))
        if operations is not None and count > operations:
            raise ValueError(f"holds {count} operations, takes at most {operations}")
        return str(_value(tree.body))

    return calculate


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATIONS:
        return _bounded(OPERATIONS[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 100:
            raise ValueError("has a power above 100")
        return _bounded(OPERATIONS[type(node.op)](left, right))
    raise ValueError("is no expression of numbers")


def _bounded(value: Any) -> int | float:
    if isinstance(value, complex) or not abs(value) <= LARGEST:
        raise ValueError("leads to a number beyond 1e30")
    return value  # type: ignore[no-any-return]
