"""Preference pairs as a stream without end: from lists, from files, and from data sets of the Hugging Face library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.data import media, schemas
from mmalign.data.media import Broken, Limits
from mmalign.data.tables import Block, Row, blocks, in_order
from mmalign.types import Pair, Ranking, Record, Thumb, UserError

__all__ = ["Listed", "Stored", "hub_pairs", "listed", "pairs"]

SCHEMAS = {"pickapic": schemas.pickapic, "hpdv2": schemas.hpdv2}
VIDEOS = {".mp4", ".webm", ".mov", ".avi", ".mkv", ".gif"}
LOOK = 16  # pairs that are read before anything long starts
WITHIN = 4096  # pairs of one row, at most: a position is a row's number times this, plus the pairs of the next row that are over


def pairs(
    path: str,
    *,
    schema: Literal["auto", "pickapic", "hpdv2"] = "auto",
    columns: dict[str, str] | None = None,
    size: int | list[int] | None = None,
    ties: Literal["soft", "drop"] = "soft",
    animated: media.Animated = "refuse",
    frames: int = 16,
    max_bytes: int = 64 * 2**20,
    max_pixels: int = 64 * 10**6,
) -> Stored:
    """Preference pairs of local files: JSONL, JSON, CSV, parquet, webdataset shards (tar), or a folder of them.

    Args:
        path: a file, a folder of files, or an image folder with a ``metadata`` file. Media are paths (relative to their file), bytes, or
            structs ``{bytes, path}``; videos are paths that end like one.
        schema: ``pickapic``, ``hpdv2``, or ``auto``, which looks at the first row's columns.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``strength`` and ``id`` are called here, for any other layout.
        size: pixels, or [height, width], that every image is scaled and cut to; None takes them as they are, all of one size.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Pairs without a label are always passed over.
        animated: ``refuse`` animated images, as broken, or take the ``first`` frame. frames: of a video, spread evenly.
        max_bytes, max_pixels: of one file, and of one image; more is broken, and is not decoded.

    A record that cannot be used is put aside with its id and the reason (``Stored.broken``), and the stream goes on.
    Errors: UserError, after a look at the first records, for no file, no schema, no usable pair, or images of different sizes.
    """
    both = (size, size) if isinstance(size, int) else size
    if both is not None and (len(both) != 2 or min(both) < 1):
        raise UserError(f"records.size: got {size}, takes pixels or [height, width]")
    limits = Limits(max_bytes, max_pixels, None if both is None else (both[0], both[1]), animated, frames)
    return _looked_at(Stored(blocks(path), schema=schema, columns=columns, ties=ties, limits=limits))


def hub_pairs(
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    streaming: bool = True,
    schema: Literal["auto", "pickapic", "hpdv2"] = "auto",
    columns: dict[str, str] | None = None,
    size: int | None = None,
    ties: Literal["soft", "drop"] = "soft",
    max_bytes: int = 64 * 2**20,
    max_pixels: int = 64 * 10**6,
) -> Stored:
    """Preference pairs of a data set that the Hugging Face ``datasets`` library loads by ``name``, on the hub or in a folder.

    streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
    reads over what it has seen. Images are decoded here, under the same limits as those of files. The rest is as in ``pairs``.
    Errors: UserError where the data set or the split is not there.
    """
    import datasets

    try:
        loaded = datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"records.name: {name!r}, split {split!r}: {' '.join(str(error).split())}") from error
    for column, feature in (loaded.features or {}).items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(column, datasets.Image(decode=False))
    limits = Limits(max_bytes, max_pixels, None if size is None else (size, size))
    return _looked_at(Stored(_Hub(loaded, name, streaming), schema=schema, columns=columns, ties=ties, limits=limits))


class Listed:
    """Records that are in memory, as ``types.Records``: every pass in another order."""

    def __init__(self, found: Sequence[Record]):
        self.records, self.broken = found, dict[str, str]()

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Record]:
        position = start
        while True:
            number, place = divmod(position, len(self.records))
            order = torch.randperm(len(self.records), generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
            for row in order[place:].tolist():
                position += 1
                yield self.records[row]._replace(position=position)


def listed(found: Sequence[Record]) -> Listed:
    """A list of records as a stream. Errors: UserError for an empty list, or what is no record, or says what cannot be."""
    if not found:
        raise UserError("records: got none, takes at least one")
    for number, record in enumerate(found):
        if not isinstance(record, (Pair, Thumb, Ranking)):
            raise UserError(f"records[{number}]: got {type(record).__name__}, takes a types.Pair, Thumb or Ranking")
        said = record.strength if isinstance(record, Pair) else record.label if isinstance(record, Thumb) else math.nan
        if said < 0 or said > 1:
            raise UserError(f"records[{number}]: got {'strength' if isinstance(record, Pair) else 'label'} {said}, takes 0..1")
        if isinstance(record, Ranking) and len(record.outputs) != len(record.scores):
            raise UserError(f"records[{number}]: got {len(record.scores)} scores, takes one for each of {len(record.outputs)} outputs")
    return Listed(found)


class _Hub:
    """A data set of the ``datasets`` library: rows by number, or one after the other."""

    def __init__(self, loaded: Any, name: str, streaming: bool):
        self.loaded, self.name, self.streaming = loaded, name, streaming

    def rows(self, *, seed: int | None, start: int) -> Iterator[tuple[int, str, Row | Broken]]:
        if not self.streaming:
            block = Block(self.name, lambda: (len(self.loaded), lambda number: dict(self.loaded[number])))
            yield from in_order([block], seed=seed, start=start)
            return
        coming = self.loaded if seed is None else self.loaded.shuffle(seed=seed % 2**32, buffer_size=1000)
        for number, row in enumerate(coming.skip(start) if start else coming, start=start + 1):
            yield number, f"{self.name}:{number}", dict(row)


class Stored:
    """Pairs that are read as they are wanted, as ``types.Records``. ``dropped`` counts ties and unlabelled pairs passed over."""

    def __init__(
        self, source: list[Block] | _Hub, *, schema: str, columns: Mapping[str, str] | None, ties: str, limits: Limits
    ):  # fmt: skip
        if schema not in ("auto", *SCHEMAS) or ties not in ("soft", "drop"):
            raise UserError(f"records: got schema={schema!r}, ties={ties!r}, takes auto, {', '.join(SCHEMAS)}; and soft or drop")
        self.source, self.columns, self.ties, self.limits = source, columns, ties, limits
        self.schema = SCHEMAS.get(schema) if columns is None else schemas.columns(columns)
        self.broken: dict[str, str] = {}
        self.dropped = {"ties": 0, "unlabelled": 0}
        self.shape: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Stored({self.source.name if isinstance(self.source, _Hub) else ', '.join(block.name for block in self.source[:3])})"

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Pair]:
        """As in ``types.Records``. Raises UserError where a whole pass over the data gives no pair."""
        passes, place = divmod(start, WITHIN * 2**40)
        while True:
            given = 0
            for pair in self._pass(seed * 1_000_003 + passes, place):
                given += 1
                yield pair._replace(position=pair.position + passes * WITHIN * 2**40)
            if not given and not place:
                raise self.unusable()
            passes, place = passes + 1, 0

    def unusable(self) -> UserError:
        why = "".join(f"; {name}: {reason}" for name, reason in islice(self.broken.items(), 1))
        over = f"{len(self.broken)} broken, {self.dropped['ties']} ties and {self.dropped['unlabelled']} unlabelled passed over"
        return UserError(f"records: no usable pair ({over}{why})")

    def first(self, count: int) -> list[Pair]:
        """The first usable pairs as the data have them, at most ``count`` and one pass."""
        return list(islice(self._pass(None, 0), count))

    def _pass(self, seed: int | None, start: int) -> Iterator[Pair]:
        rows_over, over = divmod(start, WITHIN)
        source = self.source
        coming = source.rows(seed=seed, start=rows_over) if isinstance(source, _Hub) else in_order(source, seed=seed, start=rows_over)
        for number, name, row in coming:
            try:
                if isinstance(row, Broken):
                    raise row
                drafts = list(self._schema(row)(row, str(row.get("__key__") or name)))
            except Broken as error:
                self.broken[name] = str(error)
                continue
            for place, draft in enumerate(drafts, start=1):
                if number == rows_over + 1 and place <= over:
                    continue
                pair = self._pair(draft)
                if pair is not None:
                    yield pair._replace(position=number * WITHIN if place == len(drafts) else (number - 1) * WITHIN + place)

    def _schema(self, row: Row) -> schemas.Schema:
        if self.schema is None:
            self.schema = schemas.guess(row, self.columns)
        return self.schema

    def _pair(self, draft: schemas.Draft) -> Pair | None:
        """The pair with its media decoded, or None where there is nothing to learn from it or it is broken."""
        if math.isnan(draft.strength) or (draft.strength == 0.5 and self.ties == "drop"):
            self.dropped["unlabelled" if math.isnan(draft.strength) else "ties"] += 1
            return None
        try:
            first, second = self._decoded(draft.first), self._decoded(draft.second)
            self.shape = self.shape or tuple(first.shape)
            for output in (first, second):
                if tuple(output.shape) != self.shape:
                    raise Broken(f"size {list(output.shape)}, others have {list(self.shape)} (size: N brings images to one)")
        except Broken as error:
            self.broken[draft.id] = str(error)
            return None
        return Pair(draft.prompt, first, second, draft.strength, draft.id)

    def _decoded(self, source: Any) -> Tensor:
        path = source.get("path") if isinstance(source, dict) else source
        if isinstance(path, str) and Path(path).suffix.lower() in VIDEOS - {".gif"}:
            return media.video(source, self.limits)
        return media.image(source, self.limits)


def _looked_at(found: Stored) -> Stored:
    """Reads the first pairs. Raises UserError where there is none, or where sizes differ."""
    if not found.first(LOOK):
        raise found.unusable()
    for name, why in found.broken.items():
        if why.startswith("size ["):
            raise UserError(f"records: {name}: {why}")
    found.dropped = dict.fromkeys(found.dropped, 0)
    return found
