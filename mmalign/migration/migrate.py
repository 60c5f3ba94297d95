"""Configs of 0.1.0 as configs of 0.2.0, with their comments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.config.parsing import parsed as checked
from mmalign.config.parsing import read
from mmalign.files import flat, write_text
from mmalign.migration.rules import INTERPOLATION, Translation, new_place, translate
from mmalign.migration.source import Entry, aliases, parsed, written

__all__ = ["Migrated", "migrate"]


class Migrated(NamedTuple):
    """A config in the words of 0.2.0. text: of its file; that of before where nothing changed. changed: whether something did.

    diff: what changed, in the unified form. refused: what cannot be translated, a line each; the text then lacks these. notes: what may
    mean something else now, a line each.
    """

    text: str
    changed: bool
    diff: str
    refused: list[str]
    notes: list[str]


def migrate(path: str | Path, *, write: bool = False) -> Migrated:
    """A config of version 0.1.0 in the settings of 0.2.0; comments stay with what they stand beside.

    path: of the YAML file. write: put it there, whole or not at all, where everything could be translated.

    Errors: UserError for a file that is no config.
    """
    from omegaconf import OmegaConf

    file = Path(path)
    node: Any = OmegaConf.to_container(read(file), resolve=False)
    before = file.read_text(encoding="utf-8-sig")
    if names := aliases(before):
        line = f"{names[0]}: stands for what is written elsewhere, which may have another place now; takes values that are written out"
        return Migrated(before, False, "", [line], [])
    head, entries, tail = parsed(before if before.endswith("\n") else f"{before}\n")
    translation = Translation(Entry("", children=entries), node)
    translate(translation)
    changed = bool(translation.moves or translation.dropped)
    if not changed:
        return Migrated(before, False, "", translation.refused, translation.notes)
    after = written(head, translation.root.children or [], tail)
    if not translation.refused:
        translation.refused.extend(_lost(translation, after, str(file)))
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), f"{file} (0.2.0)", lineterm="")
    if write and not translation.refused:
        write_text(file, after)
    return Migrated(after, True, "\n".join(lines), translation.refused, translation.notes)


def _lost(translation: Translation, after: str, name: str) -> list[str]:
    """Values that the new text does not have at their new place, a line each: what holds the writing of comments to account."""
    from omegaconf import OmegaConf

    new: Any = flat(OmegaConf.to_container(checked(after, name), resolve=False))
    lines = []
    for place, value in flat(translation.node).items():
        if any(place == gone or place.startswith(f"{gone}.") for gone in translation.dropped):
            continue
        there = new_place(place, translation.moves)
        if there not in new or not _same(value, new[there], translation.moves):
            lines.append(f"{place}: got {value!r}, which could not be moved to {there}; takes that place by hand")
    return lines


def _same(old: Any, new: Any, moves: Mapping[str, str]) -> bool:
    """Whether two values are the same, but for the places that interpolations name."""
    if isinstance(old, str) and isinstance(new, str) and "${" in old:
        return new in (old, _moved_text(old, moves))
    if isinstance(old, Sequence) and not isinstance(old, str) and isinstance(new, Sequence):
        return len(old) == len(new) and all(_same(first, second, moves) for first, second in zip(old, new, strict=True))
    return type(old) is type(new) and old == new


def _moved_text(text: str, moves: Mapping[str, str]) -> str:
    return INTERPOLATION.sub(lambda match: f"${{{new_place(match[1], moves)}}}", text)
