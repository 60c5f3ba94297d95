"""Who computes something else under the name of a method, and how to compute it as they do.

The paragraph ``Dialects:`` of a method's docstring has an entry for each library whose numbers differ from the paper's::

    Dialects:
    - TRL 1.16: margin="per_step", beta=0.1: takes means over tokens.

The words between the name and the note are the keywords that reproduce it: ``{use: ipo, like: TRL}`` in a config, and
``mm.like("TRL", mm.methods.ipo)`` in Python, are the same call. The tests build each of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmalign.lookup.docstrings import explanation, paragraphs


class Dialect(NamedTuple):
    """What another library computes under a method's name.

    who: its name and version. settings: the keywords with which the method computes the same. note: what that is.
    """

    who: str
    settings: dict[str, Any]
    note: str


def dialects(function: Callable[..., Any]) -> list[Dialect]:
    """What others compute under the name of a method, in the order of its docstring.

    function: what makes the method, such as ``mm.methods.ipo``.

    Errors: UserError for an entry under ``Dialects:`` that cannot be read.
    """
    return list(_read(function.__name__, explanation(function).dialects))


def like(who: str, function: Callable[..., Any], **changes: Any) -> Any:
    """A method as a library computes it: ``like("TRL", mm.methods.ipo, beta=0.2)``; ``changes`` go before the dialect's keywords.

    who: the beginning of a name under ``Dialects:``, in any case; the first that fits. function: what makes the method.

    Errors: UserError with the names there are.

    Examples:
        >>> sorted(map(str, like("TRL", mm.methods.grpo).needs))  # beta is 0 there: no reference
        ['old']
    """
    return function(**{**settings(who, function), **changes})


def settings(who: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a dialect, as ``like`` takes them.

    who, function: as there.

    Errors: UserError with the names there are, and for what is no function.
    """
    from mmalign.types import UserError

    if not callable(function):
        raise UserError(f"like.function: got {function!r}, takes what makes a method, as in mm.like({who!r}, mm.methods.ipo)")
    known = dialects(function)
    for dialect in known:
        if dialect.who.casefold().startswith(str(who).casefold()):
            return dict(dialect.settings)
    names = ", ".join(dialect.who for dialect in known) or "none: nothing is known of others that differ"
    raise UserError(f"like: got {who!r}, {function.__name__} has the dialects {names}")


def _read(name: str, text: str) -> Iterator[Dialect]:
    from mmalign.types import UserError

    for entry in paragraphs(text):
        who, _, rest = entry.partition(":")
        for colon in (match.start() for match in re.finditer(":|$", rest)):
            keywords = _keywords(rest[:colon])
            if keywords is not None:
                yield Dialect(who.strip(), keywords, rest[colon + 1 :].strip())
                break
        else:
            raise UserError(f"{name}: the dialect {who.strip()!r} has no keywords that can be read: {rest.strip()[:60]}")


def _keywords(text: str) -> dict[str, Any] | None:
    """``a=1, b="x"`` as a dict of literals, or None."""
    try:
        call = ast.parse(f"f({text.strip()})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        return None
    return None
