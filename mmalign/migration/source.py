"""A YAML file as a tree of its entries, each with its value and its comments as written: entries can move, the rest stays.

What is not touched is written as it was; a group whose entries changed is written anew, in braces where it is short and has no comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 100
"""Columns that a group in braces may take."""

COMMENT = re.compile(r"(?:(?<=\s)|^)#[^\"']*$")
"""Where a line that may have quotes has a comment for sure."""


@dataclass
class Entry:
    """A key and its value. text: the value as written, without its indentation; it begins with a line's end where it stands below its key.

    above: comments and blank lines over it. beside, column: the comment that ends its line, and where it began. children: of a mapping,
    else None. braces: whether a mapping was written in braces; `text` stands then, until ``children`` are `changed`, and the comments
    ``inside`` of the braces come above then.
    """

    key: str
    text: str = ""
    above: list[str] = field(default_factory=list)
    beside: str = ""
    column: int = 0
    children: list[Entry] | None = None
    inside: list[str] = field(default_factory=list)
    braces: bool = False
    changed: bool = False

    def child(self, key: str) -> Entry | None:
        """Its entry of that name, None where it has none."""
        return next((entry for entry in self.children or () if entry.key == key), None)


def parsed(text: str) -> tuple[list[str], list[Entry], list[str]]:
    """The lines above the first entry up to a blank one, the entries, and the lines below the last. Takes valid YAML without `aliases`."""
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.split("\n")
    entries, end = _entries(text, lines, node, 0)
    above = entries[0].above if entries else []
    head = above[: above.index("") + 1] if "" in above else above
    if entries:
        entries[0].above = above[len(head) :]
    while lines and not lines[-1].strip():
        lines.pop()
    return head, entries, [line.strip() for line in lines[end:]]


def aliases(text: str) -> list[str]:
    """The names of what stands for something that is written elsewhere (``*name``), which would not stand for it at another place."""
    import yaml

    return [f"*{event.anchor}" for event in yaml.parse(text, Loader=yaml.SafeLoader) if isinstance(event, yaml.AliasEvent)]


def _entries(text: str, lines: Sequence[str], node: Any, start: int) -> tuple[list[Entry], int]:
    """The entries of a mapping in the order of the file, and the line behind the last of them. start: the line where comments may begin."""
    entries = []
    for name, value in node.value:
        key_line = name.start_mark.line
        entry = Entry(text[name.start_mark.index : name.end_mark.index], braces=node.flow_style is True)
        entry.above = [] if node.flow_style else [line.strip() for line in lines[start:key_line]]
        behind = re.compile(r"\s*:[ \t]*").match(text, name.end_mark.index)
        begin = behind.end() if behind else name.end_mark.index
        block = value.id in ("mapping", "sequence") and value.flow_style is False
        if block:
            last = _last_line(lines, value.start_mark.line, value.end_mark)
            end = sum(len(line) + 1 for line in lines[: last + 1]) - 1
        else:
            end = max(value.end_mark.index, begin)
        if value.id == "mapping":
            entry.children, entry.braces = _entries(text, lines, value, key_line + 1)[0], value.flow_style is True
            written_lines = text[begin:end].split("\n") if entry.braces else []
            entry.inside = [match[0] for line in written_lines if (match := COMMENT.search(line))]
        if block:
            _comment(entry, lines, key_line, begin)
            entry.text = "\n" + "\n".join(_dedented(lines[key_line + 1 : last + 1], name.start_mark.column))
        else:
            entry.text = "\n".join(_dedented_after_first(text[begin:end].rstrip("\n").split("\n"), name.start_mark.column))
            last = text.count("\n", 0, begin) + text[begin:end].rstrip("\n").count("\n")
            if not node.flow_style:
                _comment(entry, lines, last, end)
        start = last + 1
        entries.append(entry)
    return entries, start


def _comment(entry: Entry, lines: Sequence[str], line: int, end: int) -> None:
    """The comment on a line behind the place ``end``, which is counted from the beginning of the file."""
    before = sum(len(other) + 1 for other in lines[:line])
    rest = lines[line][max(end - before, 0) :]
    if rest.lstrip().startswith("#"):
        entry.beside, entry.column = rest.strip(), len(lines[line]) - len(rest.lstrip())


def _last_line(lines: Sequence[str], first: int, end: Any) -> int:
    """The last line of a block that is neither blank nor a comment: a block ends for YAML where the next key begins."""
    last = min(end.line, len(lines)) - 1
    while last > first and (not lines[last].strip() or lines[last].lstrip().startswith("#")):
        last -= 1
    return last


def _dedented(lines: Sequence[str], columns: int) -> list[str]:
    return [line[min(columns, len(line) - len(line.lstrip())) :] for line in lines]


def _dedented_after_first(lines: Sequence[str], columns: int) -> list[str]:
    return [lines[0], *_dedented(lines[1:], columns)]


def written(head: Sequence[str], entries: Sequence[Entry], tail: Sequence[str]) -> str:
    """The file's text; no blank line stands at its beginning, and no two together."""
    lines = [*head, *(line for entry in entries for line in _lines(entry, "")), *tail]
    kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(kept).rstrip("\n") + "\n"


def _lines(entry: Entry, indent: str) -> Iterator[str]:
    yield from (f"{indent}{line}" if line else "" for line in entry.above)
    value = _value(entry, indent)
    if entry.braces and _changed(entry):
        yield from (f"{indent}{line}" for line in entry.inside)
    if value is None:
        yield _with_comment(f"{indent}{entry.key}:", entry)
        for child in entry.children or ():
            yield from _lines(child, f"{indent}  ")
        return
    first, *rest = value.split("\n")
    opening = f"{indent}{entry.key}: {first}".rstrip() if first else f"{indent}{entry.key}:"
    below = [f"{indent}{line}" if line else "" for line in rest]
    if not rest or not first:
        yield _with_comment(opening, entry)
        yield from below
    else:  # a comment ends the value's last line
        yield opening
        yield from below[:-1]
        yield _with_comment(below[-1], entry)


def _value(entry: Entry, indent: str) -> str | None:
    """What stands behind a key; None for children that stand below it, each on its line."""
    if entry.children is None or (entry.braces and not _changed(entry)):
        return entry.text
    short = _in_braces(entry) if entry.braces or not entry.text else None
    return short if short is not None and len(indent) + len(entry.key) + 2 + len(short) <= WIDTH else None


def _changed(entry: Entry) -> bool:
    return entry.changed or any(_changed(child) for child in entry.children or ())


def _in_braces(entry: Entry) -> str | None:
    """A group on one line; None where a comment or a longer value in it needs lines of its own."""
    parts = []
    for child in entry.children or ():
        text = _in_braces(child) if child.children is not None and (_changed(child) or not child.braces) else child.text
        if child.above or child.beside or text is None or "\n" in text or text.startswith(("|", ">")):
            return None
        if text[:1] not in ("'", '"', "[", "{") and re.search(r"[,\[\]{}]", text):
            return None  # a plain word ends at these in braces
        parts.append(f"{child.key}: {text}".rstrip())
    return "{" + ", ".join(parts) + "}"


def _with_comment(line: str, entry: Entry) -> str:
    return f"{line}{' ' * max(entry.column - len(line), 2)}{entry.beside}" if entry.beside else line
