"""Which words of an answer people marked as wrong: spans of characters beside the two answers of a pair."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from mmalign.data._reading.parsing import parsed
from mmalign.media import Broken
from mmalign.records import Marks

SIDES = {"wrong_chosen": "chosen", "wrong_rejected": "rejected"}
"""The columns, and of which answer each is."""


def of_pair(row: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The columns of a pair that hold marks, and their names."""
    columns = {key: row[key] for key in SIDES if row.get(key) is not None}
    return columns, {*columns}


def of_sides(row: Mapping[str, Any], outputs: Sequence[Any]) -> tuple[Marks, Marks] | None:
    """The marks of ``outputs``, chosen and rejected; None for a row without a column of them.

    A column is a list of ``[from, to)`` in characters, as a value or as JSON; an empty one, or one of both alone, says that nothing is
    wrong there. Spaces at the ends of a mark are none of its words. Errors: Broken for spans that are none, that lie outside of the
    text or overlap, and for those of an answer whose words are not the column's (a conversation; a prompt that was taken off).
    """
    if all(row.get(key) is None for key in SIDES):
        return None
    chosen, rejected = (_of_side(row, key, side, output) for (key, side), output in zip(SIDES.items(), outputs, strict=True))
    return chosen, rejected


def _of_side(row: Mapping[str, Any], key: str, side: str, output: Any) -> Marks:
    spans = _spans(row.get(key), key)
    if spans and (not isinstance(output, str) or (isinstance(row[side], str) and row[side] != output)):
        raise Broken(f"{key}: marks characters of {side}, which is read as other words; takes prompt, chosen and rejected as plain texts")
    for start, end in spans:
        if not 0 <= start < end <= len(output):
            raise Broken(f"{key}: got [{start}, {end}) of a text of {len(output)} characters, takes 0 <= from < to <= {len(output)}")
    for (start, end), (later, last) in pairwise(spans):
        if later < end:
            raise Broken(f"{key}: [{start}, {end}) and [{later}, {last}) overlap, takes each character once")
    words = [(start, output[start:end]) for start, end in spans]
    return tuple((start + len(text) - len(text.lstrip()), text.strip()) for start, text in words if text.strip())


def _spans(value: Any, key: str) -> list[tuple[int, int]]:
    if value is None:
        return []
    try:
        opened = parsed(value) if isinstance(value, str) else value
        return sorted((operator.index(start), operator.index(end)) for start, end in opened)
    except (TypeError, ValueError) as error:
        raise Broken(f"{key}: got {value!r:.80}, takes a list of [from, to) in characters") from error
