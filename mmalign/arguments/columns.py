"""Keywords that name a column of the prompts say so in their annotation: ``column: Column = "answer"``; ``reads`` looks there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class OfPrompts:
    """Marks a keyword whose value is a column of the prompts that is read. unless: a keyword that, given, makes it unread."""

    unless: str = ""


Column = Annotated[str, OfPrompts()]
"""The name of a column of the prompts."""
