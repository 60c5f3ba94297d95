"""Preference data whose worse answers are made of the better ones, by rules and a vocabulary that the user gives."""

from __future__ import annotations

import codecs
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.ranges import Count, Seed
from mmalign.data import corruption
from mmalign.data._reading.around import refuse_two_prompts
from mmalign.data._reading.parsing import is_file, parsed
from mmalign.data._reading.stored import PASS
from mmalign.data.pairs import listed
from mmalign.media import Broken
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.types import UserError

__all__ = ["corrupted"]

Way = Literal["swap", "add", "attribute", "number", "shorten"]
Words = Mapping[str, Sequence[str]] | Sequence[Sequence[str]]
WAYS: tuple[Way, ...] = ("swap", "add", "attribute", "number", "shorten")
PATIENCE = 1000  # records in a row in which nothing can be changed, after which there is nothing to learn from


def corrupted(
    records: Records | Sequence[Record], *, vocabulary: str | Mapping[str, Words], ways: Sequence[Way] = WAYS,
    changes: Count = 1, seed: Seed = 0,
) -> Corrupted:  # fmt: skip
    """Pairs of the better answers of ``records`` and the same with inventions put in: POVID's and HA-DPO's rejected answers, by rule.

    Args:
        records: pairs, of which the better answer is taken, or thumbs that are up (answers that are true).
        vocabulary: ``{objects: {dog: [cat, leash], ...}, attributes: {red: [blue, green], ...}}``, or a JSON file of it. objects: what is
            often seen beside each (``data.corruption.cooccurrence`` counts it in texts); attributes: what may stand in place of each.
            ``[[red, blue, green]]``: words that stand for each other.
        ways: ``swap`` an object for one of its others, ``add`` one, change an ``attribute`` or a ``number``, ``shorten`` by a sentence.
        changes: how many of the ways are taken for one answer. seed: with a record's id, which; the same record is always changed alike.

    Records in which nothing can be changed are named in ``broken``. Papers: POVID, https://arxiv.org/abs/2402.11411, and HA-DPO,
    https://arxiv.org/abs/2311.16839, have a language model write them.

    Errors: UserError for a vocabulary or ways that cannot be used,
    and where nothing can be changed in 1,000 records in a row.
    """
    source = listed(records) if isinstance(records, Sequence) else records
    if not ways or (strange := sorted(set(ways) - set(WAYS))):
        raise UserError(f"records.ways: got {strange[0] if ways else 'none'!r}, takes {', '.join(WAYS)}")
    if changes < 1:
        raise UserError(f"records.changes: got {changes}, takes 1 or more")
    tables = tables_of(vocabulary, "records.vocabulary")
    changers: dict[str, Callable[[str, random.Random], str | None]] = {
        "swap": partial(_with, corruption.swapped, tables["objects"]),
        "add": partial(_with, corruption.added, tables["objects"]),
        "attribute": partial(_with, corruption.swapped, tables["attributes"]),
        "number": corruption.renumbered,
        "shorten": corruption.shortened,
    }
    worse = Corrupted(source, {name: changers[name] for name in ways}, changes, seed)
    list(islice(worse.stream(seed=0), 1))
    return worse


class Corrupted:
    """See ``corrupted``; as ``records.Records``."""

    def __init__(self, source: Records, ways: Mapping[str, Callable[[str, random.Random], str | None]], changes: int, seed: int):
        self.source, self.ways, self.changes, self.seed = source, ways, changes, seed
        self.broken = source.broken

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Pair]:
        """As in ``records.Records``."""
        idle = 0
        for record in self.source.stream(seed=seed, start=start):
            refuse_two_prompts(record)
            better, idle = _better(record), idle + 1
            name = record.id or f"{record.position % PASS}"
            rng = random.Random(f"{self.seed} {name} {better}")
            worse = corruption.corrupt(better, self.ways, rng, changes=self.changes) if isinstance(better, str) else None
            if worse is not None and isinstance(better, str):
                idle = 0
                yield Pair(record.prompt, better, worse, 1.0, record.id, record.position)
            elif better is not None:
                self.broken[name] = "nothing in it can be changed" if isinstance(better, str) else "its answer is no text"
            if idle >= PATIENCE:
                raise UserError(f"records: nothing can be changed in {PATIENCE} records in a row; takes a vocabulary with their words")


def _with(way: Callable[..., str | None], table: corruption.Table, text: str, rng: random.Random) -> str | None:
    return way(text, table, rng)


def _better(record: Any) -> Any:
    """The answer that is taken to be true; None for a record that names none."""
    if isinstance(record, Pair) and record.strength > 0.5:
        return record.first
    if isinstance(record, Pair) and record.strength < 0.5:
        return record.second
    return record.output if isinstance(record, Thumb) and record.label > 0.5 else None


def tables_of(vocabulary: Any, where: str) -> dict[str, dict[str, list[str]]]:
    """``objects`` and ``attributes`` of a vocabulary, or of the file of one, checked.

    where: what errors call it.

    Errors: UserError for what is none.
    """
    if isinstance(vocabulary, str):
        file = Path(vocabulary)
        if not is_file(file):
            raise UserError(f"{where}: no such file: {vocabulary[:240]}")
        where = vocabulary
        try:
            vocabulary = parsed(file.read_bytes().removeprefix(codecs.BOM_UTF8))
        except Broken as error:
            raise UserError(f"{where}: {error}") from error
    if not isinstance(vocabulary, Mapping) or not vocabulary or set(vocabulary) - {"objects", "attributes"}:
        raise UserError(f"{where}: takes {{objects: {{word: [others]}}, attributes: {{word: [others]}}}}, or lists [[word, other, ...]]")
    vocabulary = {name: _each_other(table) for name, table in vocabulary.items()}
    for name, table in vocabulary.items():
        if not isinstance(table, Mapping) or not all(
            word and isinstance(others, (list, tuple)) and others and all(isinstance(other, str) and other for other in others)
            for word, others in table.items()
        ):
            raise UserError(f"{where}.{name}: takes {{word: [one or more others]}}, or [[word, one or more others]]")
    return {name: {str(word): list(others) for word, others in vocabulary.get(name, {}).items()} for name in ("objects", "attributes")}


def _each_other(table: Any) -> Any:
    """Lists of words that stand for each other, as a table; a table as it is."""
    if not isinstance(table, (list, tuple)) or not all(isinstance(words, (list, tuple)) for words in table):
        return table
    return {word: [other for other in words if other != word] for words in table for word in words}
