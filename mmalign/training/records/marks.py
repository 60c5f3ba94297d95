"""Words of given answers that people marked as wrong, as a fact of the steps that wrote them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import CHANGED
from mmalign.records import Marks, Pair, RefusedRow
from mmalign.types import Feedback, Method, Rollout


def remark(method: Method, records: Iterable[Any]) -> None:
    """A warning where words are marked and the method asks for no such fact."""
    if CHANGED not in method.needs and any(isinstance(record, Pair) and any(record.wrong or ()) for record in records):
        warnings.warn("records: words are marked as wrong, and the method reads no marks (dense_dpo and salt do)", stacklevel=2)


def changed(records: Sequence[Any], feedback: Feedback, rollout: Rollout, own: slice) -> Tensor:
    """What people marked, ``[B, T]`` float64 of the rows ``own``, for the fact ``changed``; NaN in rows of pairs that nobody marked.

    1 for steps that write something of a word marked as wrong, -1 for such steps of the better row of a pair, 0 for others. feedback: of
    all rows, which stand in pairs. Errors: RefusedRow for marks of a text that has been changed, and where the steps of a row do not
    write all of its text, so that places in it cannot be told.
    """
    table = torch.full(rollout.mask.shape, math.nan, dtype=torch.float64)
    marked = [number for number in range(own.start, own.stop) if _of_row(records, feedback, number) is not None]
    places = rollout.spans() if marked and rollout.spans is not None else []
    for number in marked if places else []:
        row, strength = number - own.start, float(feedback.strength[number // 2])  # type: ignore[index]
        better = strength < 0.5 if number % 2 else strength > 0.5
        on = written(_of_row(records, feedback, number) or (), rollout.outputs[row], places[row], number)
        table[row] = 0.0
        table[row, : len(on)] = torch.tensor(on, dtype=torch.float64) * (-1 if better else 1)
    return table


def written(marks: Marks, text: Any, places: Sequence[tuple[int, int]], number: int) -> list[bool]:
    """Whether each step writes something of a marked word.

    places: of each step the characters that it adds. number: of the row, for errors, as of ``changed``.
    """
    for start, words in marks:
        if not isinstance(text, str) or text[start : start + len(words)] != words:
            raise RefusedRow(number, f"{words[:60]!r} is marked as wrong at character {start}, where its text has been changed")
    if not marks:
        return [False] * len(places)
    length, bare = max((end for _, end in places), default=0), text.strip()
    if length not in (len(text), len(bare)):
        raise RefusedRow(number, f"words are marked in {len(text)} characters, and its tokens write {length}; takes a text kept whole")
    before = 0 if length == len(text) else len(text) - len(text.lstrip())
    spans = [(start - before, start - before + len(words)) for start, words in marks]
    return [any(first < end and start < last for first, last in spans) for start, end in places]


def _of_row(records: Sequence[Any], feedback: Feedback, number: int) -> Marks | None:
    """Of a row of all, the marks; None where nobody marked its pair."""
    record = records[int(feedback.group[number])]
    return record.wrong[number % 2] if isinstance(record, Pair) and record.wrong is not None else None
