"""Rows as token ids, each of which counts for training or is context; and where the assistant's turns begin and end among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.shown import Shown, before


class EncodedRow(NamedTuple):
    """One row. prompt: what is given. completion: the ids that follow. trained: of each of those, whether it counts. shown: in it."""

    prompt: Prompt
    completion: list[int]
    trained: list[bool]
    shown: Shown = ()

    def ended(self, stops: Collection[int], end: int | None) -> EncodedRow:
        """The row without what follows its last trained token. Its last turn ends with one of ``stops``: the one that follows, or ``end``.

        end: None where the last turn is not the assistant's, and nothing is to end.
        """
        last = max(place for place, counts in enumerate(self.trained) if counts)
        completion, trained = list(self.completion[: last + 1]), list(self.trained[: last + 1])
        if end is not None and completion[-1] not in stops:
            follows = last + 1 < len(self.completion) and self.completion[last + 1] in stops
            completion, trained = [*completion, self.completion[last + 1] if follows else end], [*trained, True]
        return EncodedRow(self.prompt, completion, trained, before(self.shown, last + 1))


def until_stop(ids: Sequence[int], stops: Collection[int]) -> list[bool]:
    """Of what an assistant's turn adds, its tokens up to its first end: what follows can never be sampled."""
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids) - 1)
    return [place <= end for place in range(len(ids))]


def until_stops(ids: Sequence[int], marks: Sequence[bool], stops: Collection[int]) -> list[bool]:
    """Marks of each run up to its first end."""
    trimmed, open_run = list[bool](), False
    for place, (token, mark) in enumerate(zip(ids, marks, strict=True)):
        open_run = mark and (open_run or place == 0 or not marks[place - 1])
        trimmed.append(open_run)
        open_run = open_run and token not in stops
    return trimmed


def start_of_run(marks: Sequence[bool], skip: int) -> int:
    """Where the run of marks number ``skip`` (from 0) starts; the end where there are fewer."""
    starts = [place for place, mark in enumerate(marks) if mark and (place == 0 or not marks[place - 1])]
    return starts[skip] if skip < len(starts) else len(marks)
