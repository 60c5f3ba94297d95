"""Preference pairs as a stream without end: from lists, from files, and from data sets of the Hugging Face library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign import media
from mmalign.data import schemas
from mmalign.data.stored import Hub, Passed, Stored, hub
from mmalign.data.tables import Block, blocks
from mmalign.media import Broken, Limits
from mmalign.records import Pair, Ranking, Record, Thumb
from mmalign.types import UserError

__all__ = ["Listed", "hub_pairs", "listed", "pairs"]

SCHEMAS = {"pickapic": schemas.pickapic, "hpdv2": schemas.hpdv2}
VIDEOS = {".mp4", ".webm", ".mov", ".avi", ".mkv", ".gif"}
LOOK = 16  # pairs that are read before anything long starts


def pairs(  # how a data set of others is read
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
    return _stored(blocks(path), schema=schema, columns=columns, ties=ties, limits=limits)


def hub_pairs(  # how a data set of others is read
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
    limits = Limits(max_bytes, max_pixels, None if size is None else (size, size))
    return _stored(hub(name, config, split, streaming), schema=schema, columns=columns, ties=ties, limits=limits)


class Listed:
    """Records that are in memory, as ``records.Records``: every pass in another order."""

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
            raise UserError(f"records[{number}]: got {type(record).__name__}, takes a records.Pair, Thumb or Ranking")
        said = record.strength if isinstance(record, Pair) else record.label if isinstance(record, Thumb) else math.nan
        if said < 0 or said > 1:
            raise UserError(f"records[{number}]: got {'strength' if isinstance(record, Pair) else 'label'} {said}, takes 0..1")
        if isinstance(record, Ranking) and len(record.outputs) != len(record.scores):
            raise UserError(f"records[{number}]: got {len(record.scores)} scores, takes one for each of {len(record.outputs)} outputs")
    return Listed(found)


def _made(ties: str, limits: Limits) -> Callable[[schemas.Draft], Pair]:
    """Drafts -> pairs with their media decoded, all of the first one's size."""
    shapes: list[tuple[int, ...]] = []

    def made(draft: schemas.Draft) -> Pair:
        if math.isnan(draft.strength) or (draft.strength == 0.5 and ties == "drop"):
            raise Passed("unlabelled" if math.isnan(draft.strength) else "ties")
        first, second = _decoded(draft.first, limits), _decoded(draft.second, limits)
        if not shapes:
            shapes.append(tuple(first.shape))
        for output in (first, second):
            if tuple(output.shape) != shapes[0]:
                raise Broken(f"size {list(output.shape)}, others have {list(shapes[0])} (size: N brings images to one)")
        return Pair(draft.prompt, first, second, draft.strength, draft.id)

    return made


def _stored(source: list[Block] | Hub, *, schema: str, columns: Mapping[str, str] | None, ties: str, limits: Limits) -> Stored:
    if schema not in ("auto", *SCHEMAS) or ties not in ("soft", "drop"):
        raise UserError(f"records: got schema={schema!r}, ties={ties!r}, takes auto, {', '.join(SCHEMAS)}; and soft or drop")
    named = SCHEMAS.get(schema) if columns is None else schemas.columns(columns)
    found = Stored(source, guess=lambda row: named or schemas.guess(row, columns), made=_made(ties, limits), what="pair")
    return _looked_at(found)


def _decoded(source: Any, limits: Limits) -> Tensor:
    path = source.get("path") if isinstance(source, dict) else source
    if isinstance(path, str) and Path(path).suffix.lower() in VIDEOS - {".gif"}:
        return media.video(source, limits)
    return media.image(source, limits)


def _looked_at(found: Stored) -> Stored:
    """Reads the first pairs. Raises UserError where there is none, or where sizes differ."""
    if not found.first(LOOK):
        raise found.unusable()
    for name, why in found.broken.items():
        if why.startswith("size ["):
            raise UserError(f"records: {name}: {why}")
    found.dropped = dict.fromkeys(found.dropped, 0)
    return found
