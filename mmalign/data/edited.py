"""Prompts that do not fit: edited ones, of a file that ``make_edits`` wrote, or by rule from a vocabulary."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from mmalign.arguments.ranges import Seed
from mmalign.data import corruption
from mmalign.data._reading.parsing import is_file
from mmalign.data._reading.tables import numbered_lines
from mmalign.data.corrupted import Words, tables_of
from mmalign.media import Broken
from mmalign.types import UserError

Editor = Callable[[str, random.Random], str | None]
SPATIAL = {
    "left": ["right"], "right": ["left"], "above": ["below", "beside"], "below": ["above"], "under": ["on top of"], "on top of": ["under"],
    "in front of": ["behind"], "behind": ["in front of"], "inside": ["outside"], "outside": ["inside"],
}  # fmt: skip


Way = Literal["content", "attribute", "spatial", "number"]
WAYS: tuple[Way, ...] = ("content", "attribute", "spatial", "number")


def edited(
    path: str | None = None, *, vocabulary: str | Mapping[str, Words] | None = None, ways: Sequence[Way] = WAYS,
    seed: Seed = 0,
) -> Callable[[list[str]], list[str]]:  # fmt: skip
    """``edits`` of a forward policy: prompts -> prompts that differ in something that can be seen (Text preference optimisation).

    Args:
        path: JSON lines of ``{"prompt": ..., "edited": [..., ...]}``, as ``mmalign pairs`` writes them by ``use: make_edits``; one of a
            prompt's is drawn for each row.
        vocabulary: for prompts that the file has not, as ``corrupted`` takes it.
        ways: of editing by rule: swap an object (``content``) or an ``attribute``, turn a place round (``spatial``: left and right, above
            and below, ...), or change a ``number``.
        seed: with the prompts of a step, which edit.

    Errors: UserError for neither of the two, a line that cannot be read, and, when it is asked for, a prompt in which nothing can be
    edited.

    Examples:
        >>> edit = edited(vocabulary={"attributes": {"red": ["blue"]}})
        >>> edit(["a red fox"])
        ['a blue fox']
    """
    if path is None and vocabulary is None:
        raise UserError("edits: got neither path nor vocabulary, takes one or both")
    if vocabulary is not None and not ways:
        raise UserError(f"edits.ways: got none, takes one or more of {', '.join(WAYS)}")
    written = {} if path is None else _written(path)
    tables = {"objects": {}, "attributes": {}} if vocabulary is None else tables_of(vocabulary, "edits.vocabulary")
    editors: dict[str, Editor] = {
        "content": partial(_swapped, tables["objects"]), "attribute": partial(_swapped, tables["attributes"]),
        "spatial": partial(_swapped, SPATIAL), "number": corruption.renumbered,
    }  # fmt: skip
    chosen: dict[str, Editor] = {} if vocabulary is None else {way: editors[way] for way in ways}

    def edits(prompts: list[str]) -> list[str]:
        return [_edit(prompt, random.Random(f"{seed} {place} {prompts}"), written, chosen) for place, prompt in enumerate(prompts)]

    return edits


def _edit(prompt: str, rng: random.Random, written: Mapping[str, list[str]], editors: Mapping[str, Editor]) -> str:
    if prompt in written:
        return rng.choice(written[prompt])
    changed = corruption.corrupt(prompt, editors, rng)
    if changed is None:
        raise UserError(f"edits: nothing in {prompt[:120]!r} can be edited; takes a file with it, or a vocabulary with its words")
    return changed


def _swapped(table: corruption.Table, text: str, rng: random.Random) -> str | None:
    return corruption.swapped(text, table, rng)


def _written(path: str) -> dict[str, list[str]]:
    file = Path(path)
    if not is_file(file):
        raise UserError(f"edits.path: no such file: {path[:240]}")
    written: dict[str, list[str]] = {}
    for number, row in numbered_lines(file):
        several = None if isinstance(row, Broken) else row.get("edited")
        fits = isinstance(several, list) and several and all(isinstance(edit, str) and edit.strip() for edit in several)
        if isinstance(row, Broken) or not isinstance(row.get("prompt"), str) or not fits:
            why = row if isinstance(row, Broken) else 'takes {"prompt": a string, "edited": [one or more]}'
            raise UserError(f"{path}, line {number}: {why}")
        written.setdefault(row["prompt"], []).extend(several)  # type: ignore[arg-type]
    if not written:
        raise UserError(f"{path}: got no lines, takes one for each prompt")
    return written
