"""What a docstring says of a method: its formula, its keywords, and who does otherwise.

The paragraph ``Dialects:`` of a method's docstring has an entry for each library whose numbers differ from the paper's::

    Dialects:
    - TRL 1.16: margin="per_step", beta=0.1: takes means over tokens.

The words between the name and the note are the keywords that reproduce it: ``{use: ipo, like: TRL}`` in a config, and
``mm.like("TRL", mm.methods.ipo)`` in Python, are the same call. The tests build each of them.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SECTIONS = ("Args", "Paper", "Deviations", "Dialects", "Errors")


class Dialect(NamedTuple):
    """``settings``: the keywords with which a method computes what ``who`` computes. ``note``: what that is."""

    who: str
    settings: dict[str, Any]
    note: str


class Explanation(NamedTuple):
    """A method in parts.

    formula: prose and equations. keywords: (names, meaning) as the docstring has them. defaults: name -> default. remarks: what
    follows the keywords.
    """

    name: str
    meaning: str
    formula: str
    defaults: dict[str, Any]
    keywords: list[tuple[str, str]]
    remarks: str
    paper: str
    deviations: str
    dialects: list[Dialect]


def explanation(function: Callable[..., Any]) -> Explanation:
    """What a method's signature and docstring say. Errors: UserError for an entry under ``Dialects:`` that cannot be read."""
    first, *rest = re.split(rf"^({'|'.join(SECTIONS)}):", inspect.cleandoc(function.__doc__ or ""), flags=re.MULTILINE)
    parts = dict(zip(rest[::2], rest[1::2], strict=True))
    meaning, _, formula = first.strip().partition("\n")
    arguments, *remarks = re.split(r"^(?=\S)", parts.get("Args", "").strip("\n"), maxsplit=1, flags=re.MULTILINE)
    entries = re.split(r"^(?=\S)", textwrap.dedent(arguments), flags=re.MULTILINE)
    keywords = [entry.partition(":") for entry in entries if entry.strip()]
    return Explanation(
        name=function.__name__,
        meaning=meaning.strip(),
        formula=formula.strip("\n").replace("::", ":"),
        defaults={name: parameter.default for name, parameter in inspect.signature(function).parameters.items()},
        keywords=[(names.strip(), _unwrapped(text)) for names, _, text in keywords],
        remarks=_unwrapped("".join(remarks)),
        paper=_unwrapped(parts.get("Paper", "")),
        deviations=_unwrapped(parts.get("Deviations", "")),
        dialects=list(_dialects(function.__name__, parts.get("Dialects", ""))),
    )


def like(who: str, function: Callable[..., Any], **changes: Any) -> Any:
    """A method as a library computes it: ``like("TRL", mm.methods.ipo, beta=0.2)``; ``changes`` go before the dialect's keywords.

    who: the beginning of a name under ``Dialects:``, in any case; the first that fits. Errors: UserError with the names there are.
    """
    return function(**{**settings(who, function), **changes})


def settings(who: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords of a dialect. Errors: UserError with the names there are."""
    from mmalign.types import UserError

    known = explanation(function).dialects
    for dialect in known:
        if dialect.who.casefold().startswith(str(who).casefold()):
            return dict(dialect.settings)
    names = ", ".join(dialect.who for dialect in known) or "none: nothing is known of others that differ"
    raise UserError(f"like: got {who!r}, {function.__name__} has the dialects {names}")


def _dialects(name: str, text: str) -> Iterator[Dialect]:
    from mmalign.types import UserError

    for entry in re.split(r"^\s*- ", text, flags=re.MULTILINE)[1:]:
        who, _, said = _unwrapped(entry).partition(":")
        for colon in (match.start() for match in re.finditer(":|$", said)):
            found = _keywords(said[:colon])
            if found is not None:
                yield Dialect(who.strip(), found, said[colon + 1 :].strip())
                break
        else:
            raise UserError(f"{name}: the dialect {who.strip()!r} has no keywords that can be read: {said.strip()[:60]}")


def _keywords(text: str) -> dict[str, Any] | None:
    """``a=1, b="x"`` as a dict of literals, or None."""
    try:
        call = ast.parse(f"f({text.strip()})", mode="eval").body
        if isinstance(call, ast.Call) and not call.args:
            return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError):
        return None
    return None


def _unwrapped(text: str) -> str:
    return " ".join(text.split())
