"""Rows that somebody gave, as a language model is given them: those of one process, and of the others' what they may be compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.conversations import told_apart_by
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.encoded_rows import EncodedRow
from mmalign.records import RefusedRow
from mmalign.types import UserError

__all__: list[str] = []  # no policy


class Given(NamedTuple):
    """Rows of a part. encoded: P prompts, the last ones of other rows. sources: what each was made of. which: ``[B]`` the prompt of each
    row. following: ``[P]`` the place of the next other prompt of all rows, as in ``completions.Completions``."""

    rows: list[EncodedRow]
    encoded: list[Prompt]
    sources: list[Any]
    which: Tensor
    following: Tensor


def given(prompts: Sequence[Any], outputs: Sequence[Any], part: slice, read: Callable[[Any, Any], EncodedRow]) -> Given:
    """The rows ``part`` of all that were given, each read once, and of each prompt the next other one, whoever has its rows.

    What is next goes by all prompts in their order, so that it does not depend on the part; one that is worded otherwise and comes to
    the same tokens and pixels is passed over. Errors: RefusedRow for the first row that cannot be read.
    """

    @cache
    def row(number: int) -> EncodedRow:
        try:
            return read(prompts[number], outputs[number])
        except UserError as error:
            raise RefusedRow(number, str(error)) from error

    names = [told_apart_by(prompt) for prompt in prompts]
    order = sorted({name: number for number, name in reversed([*enumerate(names)])}.values())  # the first row of each prompt
    turn_of = {names[number]: turn for turn, number in enumerate(order)}
    numbers: list[int] = []  # of the row that each place is made of
    places: dict[tuple[Any, ...], int] = {}

    def key_of(number: int) -> tuple[str, tuple[int, ...], str]:
        return names[number], row(number).prompt.ids, row(number).prompt.digest

    def place(number: int) -> int:
        key = key_of(number)
        if key not in places:
            places[key] = len(numbers)
            numbers.append(number)
        return places[key]

    def behind(number: int) -> int:
        turn, (_, ids, digest) = turn_of[names[number]], key_of(number)
        return next((other for other in (*order[turn + 1 :], *order[:turn]) if key_of(other)[1:] != (ids, digest)), number)

    own = range(len(prompts))[part]
    which = torch.tensor([place(number) for number in own])
    following = [place(behind(number)) for number in list(numbers)]
    following += range(len(following), len(numbers))  # nobody stands behind those that are here for that alone
    read_rows = [row(number) for number in numbers]
    return Given(
        [row(number) for number in own],
        [each.prompt for each in read_rows],
        [prompts[number] for number in numbers],
        which,
        torch.tensor(following),
    )
