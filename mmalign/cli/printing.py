"""What commands print: tables for eyes on a terminal, and in a pipe a line for each row, without frames, colours and blanks at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 200  # columns of text in a pipe, which has none of its own


def print_rows(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, head: bool = False, failed: Sequence[int] = ()
) -> None:
    """A table on a terminal; in a pipe a line for each row, its columns parted by tabs.

    columns: their heads, all empty for none. head: whether a pipe is told them too. failed: numbers of rows that are shown in red.
    """
    if not sys.stdout.isatty():
        for row in [columns, *rows] if head else rows:
            typer.echo("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=escape(title), title_justify="left", show_header=any(columns))
    for number, (first, *others) in enumerate(rows):
        table.add_row(f"[bold]{escape(first)}[/bold]", *map(escape, others), style="red" if number in failed else None)
    Console().print(table)


def console() -> Console:
    """Where a text with marks is printed: on a terminal at its width; in a pipe at ``WIDTH``, where no line ends in blanks."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    return Console(highlight=False, width=WIDTH, file=_Trimmed(sys.stdout))


class _Trimmed(io.StringIO):
    """Whole lines, each without the blanks at its end."""

    def __init__(self, to: TextIO):
        super().__init__()
        self.to, self.line = to, ""

    def write(self, text: str, /) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.to.write(line.rstrip() + "\n")
        return len(text)

    def isatty(self) -> bool:
        return False

    def flush(self) -> None:
        self.to.flush()
