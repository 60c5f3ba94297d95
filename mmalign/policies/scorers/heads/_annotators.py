"""People by name, as rows of what a head knows of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.types import UserError


class Annotators:
    """Names, each once, or a text file with one in a line. Errors: UserError for no name, one twice, or a file that is not there."""

    def __init__(self, annotators: list[str] | str):
        if isinstance(annotators, str):
            if not Path(annotators).is_file():
                raise UserError(f"policy.head.annotators: no such file: {annotators}; takes a list of names, or a file with one in a line")
            annotators = [name.strip() for name in Path(annotators).read_text(encoding="utf-8").split("\n") if name.strip()]
        names = [str(name) for name in annotators]
        if not names or len({*names}) < len(names) or "" in names:
            raise UserError(
                f"policy.head.annotators: got {len(names)} names, {len({*names})} of them different; takes one or more, each once"
            )
        self.place = {name: row for row, name in enumerate(names)}

    def __len__(self) -> int:
        return len(self.place)

    def rows(self, names: Sequence[Any]) -> list[int]:
        """The row of each, one past the last for an empty name or none. Errors: UserError for a name that is not among them."""
        if unknown := [name for name in names if name and name not in self.place]:
            listed = ", ".join(list(self.place)[:8]) + ", ..." * (len(self.place) > 8)
            raise UserError(f"policy.head.annotators: does not list {unknown[0]!r}; takes {listed}, or no name")
        return [self.place[name] if name else len(self.place) for name in names]
