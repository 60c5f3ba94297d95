"""Records that are read as they are wanted: of files, and of data sets of the Hugging Face library."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mmalign.data._reading.parsing import short
from mmalign.data._reading.tables import Block, Row, in_order
from mmalign.files import digest
from mmalign.media import Broken
from mmalign.records import AT, Record, read
from mmalign.types import UserError

WITHIN = 4096  # records of one row, at most: a position is a row's number times this, plus the records of the next row that are over
PASS = WITHIN * 2**40

Schema = Callable[[Row, str], Iterator[Any]]
"""A row and what to call it -> drafts: records before anything is decoded, each with its ``id``."""


class Passed(Exception):
    """A record that says nothing, and is passed over: ``ties`` or ``unlabelled``."""


class Hub:
    """A data set of the ``datasets`` library: rows by number, or one after the other. commit: what it is told apart by, see ``hub``."""

    def __init__(self, loaded: Any, name: str, streaming: bool, commit: str = ""):
        self.loaded, self.name, self.streaming, self.commit = loaded, name, streaming, commit

    def rows(self, *, seed: int | None, start: int) -> Iterator[tuple[int, str, Row | Broken]]:
        if not self.streaming:
            yield from in_order(self.blocks(), seed=seed, start=start)
            return
        shuffled = self.loaded if seed is None else self.loaded.shuffle(seed=seed % 2**32, buffer_size=1000)
        rows, number = iter(shuffled.skip(start) if start else shuffled), start
        while (row := self._row(lambda: next(rows, None))) is not None:
            number += 1
            yield number, f"{self.name}:{number}", row

    def blocks(self) -> list[Block]:
        """All rows by number, of a data set that is not streamed."""
        return [Block(self.name, lambda: (len(self.loaded), lambda number: self._row(lambda: self.loaded[number]) or {}))]

    def _row(self, read: Callable[[], Any]) -> Row | None:
        """A row, or None at the end. Errors: UserError for what the library cannot read: it cannot go on after that."""
        import datasets
        import pyarrow

        try:
            row = read()
        except (OSError, ValueError, OverflowError, pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"records.name: {self.name} is not readable: {short(error)}") from error
        return None if row is None else {str(key): value for key, value in row.items()}


def hub(name: str, config: str | None, split: str, streaming: bool, revision: str | None = None) -> Hub:
    """A data set by name, images left undecoded, of one commit: the revision's, or the newest.

    Errors: UserError where the data set, the split or the revision is not there, and for a revision of a folder.
    """
    import datasets

    commit = _commit(name, revision)
    try:
        loaded = datasets.load_dataset(name, config, split=split, streaming=streaming, revision=commit or revision)
    except (OSError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"records.name: {name!r}, split {split!r}: {short(error)}") from error
    for column, feature in (loaded.features or {}).items():
        if (plain := _undecoded(feature)) != feature:
            loaded = loaded.cast_column(column, plain)
    return Hub(loaded, name, streaming, f"{name} {config or ''} {split}{AT}{commit}" if commit else "")


def _commit(name: str, revision: str | None) -> str:
    """The commit that a branch or a tag is now; '' for a folder, and where no hub answers, which leaves it to what is cached here."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if Path(name).exists():
        if revision is not None:
            raise UserError(f"records.revision: got {revision!r} of the folder {name}, takes one of a data set on the hub")
        return ""
    try:
        return HfApi().dataset_info(name, revision=revision).sha or ""
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return revision if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) else ""
    except (HfHubHTTPError, ValueError) as error:
        at = "" if revision is None else f", revision {revision!r}"
        raise UserError(f"records.name: {name!r}{at}: {short(error)}") from error


def _undecoded(feature: Any) -> Any:
    """A feature whose media stay bytes and paths, also those in lists and objects."""
    import datasets

    if isinstance(feature, (datasets.Image, datasets.Video, datasets.Audio)):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_undecoded(feature.feature))
    return {key: _undecoded(part) for key, part in feature.items()} if isinstance(feature, dict) else feature


class Stored:
    """Records that are read as they are wanted, as ``records.Records``. ``dropped`` counts ties and unlabelled ones passed over.

    guess: a row -> its schema, asked until a row has one. finish: a draft -> its record, whose media may be ``records.Unread``; Broken and
    Passed come out of it.
    """

    def __init__(self, source: list[Block] | Hub, *, guess: Callable[[Row], Schema], finish: Callable[[Any], Record], what: str = "record"):
        self.source, self.guess, self.finish, self.what = source, guess, finish, what
        self.schema: Schema | None = None
        self.broken: dict[str, str] = {}
        self.dropped = {"ties": 0, "unlabelled": 0}

    def __repr__(self) -> str:
        return f"Stored({self.source.name if isinstance(self.source, Hub) else ', '.join(block.name for block in self.source[:3])})"

    def digest(self) -> str:
        """What the files are told apart by, see ``files.digest``; of a data set of a hub its commit, '' where that is not known."""
        return (
            self.source.commit if isinstance(self.source, Hub) else digest(dict.fromkeys(block.file for block in self.source if block.file))
        )

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Records``. Errors: UserError where a whole pass over the data gives no record."""
        yield from self._endless(seed, start, decode=True)

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Undecoded``. Errors: as of ``stream``."""
        yield from self._endless(seed, start, decode=False)

    def _endless(self, seed: int, start: int, *, decode: bool) -> Iterator[Any]:
        passes, place = divmod(start, PASS)
        while True:
            count = 0
            for record in self._pass(seed * 1_000_003 + passes, place, decode=decode):
                count += 1
                yield record._replace(position=record.position + passes * PASS)
            if not count and not place:
                raise self.unusable()
            passes, place = passes + 1, 0

    def unusable(self) -> UserError:
        why = "".join(f"; {name}: {reason}" for name, reason in islice(self.broken.items(), 1))
        over = f"{len(self.broken)} broken, {self.dropped['ties']} ties and {self.dropped['unlabelled']} unlabelled passed over"
        return UserError(f"records: no usable {self.what} ({over}{why})")

    def first(self, count: int) -> list[Any]:
        """The first usable records as the data have them, at most ``count`` and one pass."""
        return list(islice(self._pass(None, 0, decode=True), count))

    def _pass(self, seed: int | None, start: int, *, decode: bool) -> Iterator[Any]:
        rows_over, over = divmod(start, WITHIN)
        source = self.source
        rows = source.rows(seed=seed, start=rows_over) if isinstance(source, Hub) else in_order(source, seed=seed, start=rows_over)
        for number, name, row in rows:
            try:
                if isinstance(row, Broken):
                    raise row
                drafts = list(self._schema(row)(row, str(row.get("__key__") or name)))
                if len(drafts) > WITHIN:
                    raise Broken(f"gives {len(drafts)} {self.what}s, takes at most {WITHIN} of a row")
            except Broken as error:
                self.broken[name] = str(error)
                continue
            for place, draft in enumerate(drafts, start=1):
                if number == rows_over + 1 and place <= over:
                    continue
                record = self._finished(draft, decode)
                if record is not None:
                    yield record._replace(position=number * WITHIN if place == len(drafts) else (number - 1) * WITHIN + place)

    def _schema(self, row: Row) -> Schema:
        if self.schema is None:
            self.schema = self.guess(row)
        return self.schema

    def _finished(self, draft: Any, decode: bool) -> Any:
        """The record of a draft, or None where there is nothing to learn from it or it is broken."""
        try:
            return read(self.finish(draft)) if decode else self.finish(draft)
        except Passed as error:
            self.dropped[str(error)] += 1
        except Broken as error:
            self.broken[draft.id] = str(error)
        return None
