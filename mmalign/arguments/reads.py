"""Which columns of the prompts a reward, a judge, an oracle or a metric reads, known before it is made.

A factory's keyword says it in its annotation: ``column: Column = "answer"``. What it makes has ``reads``. A plain function of a user's,
``(outputs, prompts, wanted)``, reads what it takes besides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmalign.arguments.facts import Reading
from mmalign.arguments.signatures import nearest, parameters

OWN = ("outputs", "prompts", "group")
"""What a function is asked about, and an oracle with its groups: no columns."""


def columns_read(function: Callable[..., Any]) -> frozenset[str]:
    """The columns that a reward, judge, oracle or metric needs: what it says it ``reads``, or its keywords without a default."""
    return frozenset(function.reads if isinstance(function, Reading) else needed(function))


def needed(function: Callable[..., Any]) -> list[str]:
    """The columns that a plain function takes: its keywords without a default, besides what it is asked about."""
    required = [name for name, parameter in parameters(function)[0].items() if parameter.required]
    return [name for place, name in enumerate(required) if place > 1 and name not in OWN]


def columns_named(function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """The columns that what a factory makes of these arguments will read; only what is marked says so."""
    import inspect

    known, _ = parameters(function)
    defaults = inspect.signature(function).parameters
    named = []
    for name, parameter in known.items():
        if parameter.of_prompts is not None and arguments.get(parameter.of_prompts.unless) is None:
            value = arguments.get(name, defaults[name].default)
            named.extend([value] if isinstance(value, str) else [])
    return named


def lacks(reads: Iterable[str], there: Iterable[str]) -> str | None:
    """The rest of a line about the first column that is read and is not there: ``reads the column 'a' of the prompts; they have b``."""
    columns = sorted(there)
    absent = sorted(set(reads) - set(columns))
    if not absent:
        return None
    has = f"they have {', '.join(columns)}" if columns else "they have none"
    return f"reads the column {absent[0]!r} of the prompts; {has}{nearest(absent[0], columns)}"
