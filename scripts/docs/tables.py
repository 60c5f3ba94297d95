"""Tables that pages leave to what there is: ``<!-- table: configs -->`` becomes the table of that name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import examples
from names import named
from reference import cell, link_of

from mmalign.lookup.dialects import dialects

MARK = re.compile(r"<!-- table: (\w+)(?: (.+?))? -->")


def filled(markdown: str, page: str) -> str:
    """A page's Markdown with its tables. Errors: KeyError for a table that there is not."""
    return MARK.sub(lambda match: "\n".join(TABLES[match.group(1)](match.group(2) or "", page)), markdown)


def same_as(who: str, page: str) -> Iterator[str]:
    """Every method that another library has under the same name with other numbers, and the keywords that give its."""
    yield f"| method | what `like: {who}` sets | what differs |\n|---|---|---|"
    for one in named():
        if one.topic != "methods":
            continue
        for dialect in dialects(one.load()):
            if dialect.who.casefold().startswith(who.casefold()):
                settings = ", ".join(f"{key}={value!r}" for key, value in dialect.settings.items())
                shown = f"`{cell(settings)}`" if settings else "nothing: it is the same"
                yield f"| {link_of(one.paths[0], page)} | {shown} | {cell(dialect.note)} |"


def configs(_: str, page: str) -> Iterator[str]:
    """The folders of configs."""
    return (line.replace("](", f"]({os.path.relpath('configs', os.path.dirname(page))}/") for line in examples.table())


TABLES: dict[str, Callable[[str, str], Iterator[str]]] = {"like": same_as, "configs": configs}
