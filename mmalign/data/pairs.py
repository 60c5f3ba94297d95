"""Preference data of images and videos as a stream without end: from lists, from files, and from data sets of the Hugging Face library."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmalign import media
from mmalign.arguments.ranges import Count, Size
from mmalign.data._reading.groups import in_groups
from mmalign.data._reading.parsing import is_file, is_folder
from mmalign.data._reading.stored import Hub, Passed, Stored, hub
from mmalign.data._reading.tables import Block, blocks, located
from mmalign.data._schemas import outputs
from mmalign.data._schemas.notices import Notice
from mmalign.media import Broken, Limits
from mmalign.records import Drawn, Pair, Ranking, Record, Thumb, Unread, outputs_of
from mmalign.types import UserError

__all__ = ["Listed", "hub_pairs", "listed", "pairs"]
OUTPUTS = {"pairs": "images", "hub_pairs": "images"}  # what they read, or videos: for who checks a config

SchemaName = Literal["auto", "pickapic", "hpdv2", "hpdv3", "imagereward", "videoreward", "thumbs", "demonstrations"]
SCHEMAS: dict[str, outputs.Schema] = {
    "pickapic": outputs.pickapic, "hpdv2": outputs.hpdv2, "hpdv3": outputs.hpdv3, "imagereward": outputs.hpdv2,
    "videoreward": outputs.videoreward,
}  # fmt: skip
VIDEOS = {".mp4", ".webm", ".mov", ".avi", ".mkv", ".gif"}
NOT_HASHED, IF_SAID = ("scores", "position"), ("labels", "ratings", "other")  # of records; the latter where something is said there
LOOK = 16  # pairs that are read before anything long starts


def pairs(  # how a data set of others is read
    path: str | list[str],
    *,
    schema: SchemaName = "auto",
    columns: dict[str, str] | None = None,
    folder: str | None = None,
    size: Count | list[int] | None = None,
    ties: Literal["soft", "drop"] = "soft",
    animated: media.Animated = "refuse",
    frames: Count = 16,
    max_bytes: Size = 64 * 2**20,
    max_pixels: Size = 64 * 10**6,
) -> Stored:
    """Images or videos and what was said of them, in local files: JSONL, JSON, CSV, parquet, webdataset shards (tar), or a folder of them.

    Args:
        path: a file, a folder of files, an image folder with a ``metadata`` file, or a list of these. Media are paths (relative to their
            file), bytes, ``data:`` addresses, or structs ``{bytes, path}``; videos are paths that end like one.
        schema: pairs: ``pickapic``, ``hpdv2``, ``hpdv3``, ``imagereward`` (its lists, and ImageRewardDB's rows of one image, which are read
            all at once), ``videoreward`` (with a label in ``VQ``, ``MQ`` and ``TA``);
            ``thumbs`` (prompt, image, label), ``demonstrations`` (no label, all good); or ``auto``, which looks at the
            first row's columns, and knows prompt, chosen and rejected, too.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``strength``, ``image``, ``label``, ``labels`` and ``id`` are called here,
            otherwise; and ``source``, of edits, the path of the picture that was changed, which the prompt then shows (of pairs).
        folder: where relative paths start that do not start at the file (``train.json`` may name files of ``train/``).
        size: pixels, or [height, width], that every image is scaled and cut to; None takes them as they are, all of one size.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Pairs without a label are always passed over.
        animated: ``refuse`` animated images, as broken, or take the ``first`` frame. frames: of a video, spread evenly.
        max_bytes, max_pixels: of one file, and of one image; more is broken, and is not decoded.

    Columns that nobody reads are named once. A record that cannot be used is put aside with its id and the reason (``Stored.broken``),
    and the stream goes on.

    Errors: UserError, after a look at the first records, for no file, no schema, no usable pair, or images of different sizes.
    """
    both = (size, size) if isinstance(size, int) else size
    if both is not None and (len(both) != 2 or min(both) < 1):
        raise UserError(f"records.size: got {size}, takes pixels or [height, width]")
    limits = Limits(max_bytes, max_pixels, None if both is None else (both[0], both[1]), animated, frames)
    if folder is not None and not is_folder(folder):
        raise UserError(f"records.folder: no such folder: {folder[:240]}")
    return _stored(blocks(path, most=max_bytes), _with_media(ties, limits, folder), schema=schema, columns=columns, ties=ties)


def hub_pairs(  # how a data set of others is read
    name: str,
    *,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = True,
    schema: SchemaName = "auto",
    columns: dict[str, str] | None = None,
    size: Count | None = None,
    ties: Literal["soft", "drop"] = "soft",
    max_bytes: Size = 64 * 2**20,
    max_pixels: Size = 64 * 10**6,
) -> Stored:
    """Images or videos and what was said of them, of a data set that the Hugging Face ``datasets`` library loads; see ``pairs``.

    Args:
        name: of the data set on the hub, or a folder. revision: a branch, a tag or a commit of it; the newest by default. A run that is
            resumed goes on with the commit that it began with, or not at all.
        streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
            reads over what it has seen.
        schema: what the rows are, as in ``pairs``; ``auto`` looks at the first row's columns.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``strength``, ``image``, ``label`` and ``id`` are called here, otherwise.
        size: pixels, of both sides, that every image is scaled and cut to; None takes them as they are, all of one size.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over.

    Images are decoded here, under the same limits as those of files.

    Errors: UserError where the data set or the split is not there, and as in ``pairs``.
    """
    limits = Limits(max_bytes, max_pixels, None if size is None else (size, size))
    source = hub(name, config, split, streaming, revision)
    return _stored(source, _with_media(ties, limits, None), schema=schema, columns=columns, ties=ties)


class Listed:
    """Records that are in memory, as ``records.Records``: every pass in another order. broken: those that are put aside, and why."""

    def __init__(self, records: Sequence[Record], broken: Mapping[str, str] | None = None):
        self.records, self.broken = records, dict(broken or {})

    def digest(self) -> str:
        """Of prompts, words, labels and shapes: numbers of a model's own pictures may differ by rounding elsewhere."""
        rows = [
            {key: value for key, value in record._asdict().items() if key not in NOT_HASHED and (key not in IF_SAID or value)}
            for record in self.records
        ]
        text = json.dumps(rows, default=lambda value: list(value.shape) if isinstance(value, Tensor) else type(value).__name__)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Record]:
        position = start
        while True:
            number, place = divmod(position, len(self.records))
            order = torch.randperm(len(self.records), generator=torch.Generator().manual_seed(seed * 1_000_003 + number))
            for row in order[place:].tolist():
                position += 1
                yield self.records[row]._replace(position=position)


def listed(records: Sequence[Record]) -> Listed:
    """A list of records as a stream.

    records: ``records.Pair``, ``Thumb`` or ``Ranking``. A pair in which an output is said to be better than itself is put aside, as it is
    of a file; as a tie it stays.

    Errors: UserError for an empty list, one of such pairs alone, or what is no record, or says what cannot be.
    """
    if not records:
        raise UserError("records: got none, takes at least one")
    for number, record in enumerate(records):
        if not isinstance(record, (Pair, Thumb, Ranking)):
            raise UserError(f"records[{number}]: got {type(record).__name__}, takes a records.Pair, Thumb or Ranking")
        if isinstance(record, Pair) and (record.strength < 0 or record.strength > 1):
            raise UserError(f"records[{number}]: got strength {record.strength}, takes 0..1")
        if isinstance(record, Thumb) and (record.label < 0 or record.label > 1):
            raise UserError(f"records[{number}]: got label {record.label}, takes 0..1")
        if isinstance(record, Ranking) and len(record.outputs) != len(record.scores):
            raise UserError(f"records[{number}]: got {len(record.scores)} scores, takes one for each of {len(record.outputs)} outputs")
        if isinstance(record, Pair) and (odd := [name for name, p in record.labels.items() if p < 0 or p > 1]):
            raise UserError(f"records[{number}]: got {record.labels[odd[0]]} as label of {odd[0]}, takes 0..1")
        if record.ratings and len(record.ratings) != (count := len(outputs_of(record))):
            raise UserError(f"records[{number}]: got ratings of {len(record.ratings)} outputs, takes one mapping for each of {count}")
    strange = {number: record for number, record in enumerate(records) if isinstance(record, Pair) and _better_than_itself(record)}
    if len(strange) == len(records):
        raise UserError("records: both sides of every pair are the same, and one of them is said to be better; takes outputs that differ")
    broken = {record.id or f"records[{number}]": "both sides are the same" for number, record in strange.items()}
    return Listed([record for number, record in enumerate(records) if number not in strange] if strange else records, broken)


def _better_than_itself(pair: Pair) -> bool:
    """Whether an output is compared with itself, under one prompt, and one side is said to be better, in all or in some dimension."""
    one, other = pair.first, pair.second
    if pair.other is not None or isinstance(one, Drawn) or type(one) is not type(other):
        return False
    if not any(value == value and value != 0.5 for value in (pair.strength, *pair.labels.values())):
        return False
    return one is other or (torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other))


def _with_media(ties: str, limits: Limits, folder: str | None) -> Callable[[outputs.Draft], Record]:
    """Drafts -> records, whose media are of the first one's size when they are decoded."""
    shapes: list[tuple[int, ...]] = []

    def decoded(source: Any) -> Tensor:
        output = _decoded(source, limits)
        if not shapes:
            shapes.append(tuple(output.shape))
        if tuple(output.shape) != shapes[0]:
            raise Broken(f"size {list(output.shape)}, others have {list(shapes[0])} (size: N brings images to one)")
        return output

    def finish(draft: outputs.Draft) -> Record:
        one = draft.second is None
        unknown = math.isnan(draft.strength) and not draft.labels
        if unknown or (draft.strength == 0.5 and ties == "drop" and not one):
            raise Passed("unlabelled" if unknown else "ties")
        if not one and draft.first == draft.second:
            raise Broken("both sides are the same")
        sources = [located(source, folder) for source in ((draft.first,) if one else (draft.first, draft.second))]
        sides = [Unread(source, _name(source), decoded) for source in sources]
        if one:
            return Thumb(draft.prompt, sides[0], draft.strength, draft.id)
        prompt = draft.prompt if draft.source is None else outputs.instructed(_path(located(draft.source, folder)), draft.prompt)
        return Pair(prompt, sides[0], sides[1], draft.strength, draft.id, annotator=draft.annotator, labels=draft.labels)

    return finish


def _stored(
    source: list[Block] | Hub, finish: Callable[[outputs.Draft], Record], *, schema: str, columns: Mapping[str, str] | None, ties: str
) -> Stored:
    takes = get_args(SchemaName)
    if schema not in takes or ties not in ("soft", "drop"):
        raise UserError(f"records: got schema={schema!r}, ties={ties!r}, takes {', '.join(takes)}; and soft or drop")
    notice, names = Notice("records"), columns or {}
    if columns is not None:
        outputs.columns(columns)
    single = {"thumbs": outputs.thumbs(names, labelled=True), "demonstrations": outputs.thumbs(names, labelled=False)}
    known = {**SCHEMAS, **single}

    def guess(row: outputs.Row) -> outputs.Schema:
        own = known[schema] if schema != "auto" and (columns is None or schema in single) else outputs.guess(row, columns)
        return outputs.with_notice(own, names, notice)

    return _looked_at(Stored(in_groups(source), guess=guess, finish=finish, what="pair"))


def _path(source: Any) -> str:
    """Errors: Broken for a picture of a prompt that is no file."""
    path = source.get("path") if isinstance(source, dict) else source
    if not isinstance(path, str) or not is_file(Path(path)):
        raise Broken(f"source: no such file: {str(path)[:240]}; takes the path of a picture")
    return path


def _name(source: Any) -> str:
    """A file's name without its folder, or a hash of bytes."""
    path = source.get("path") if isinstance(source, dict) and not source.get("bytes") else source
    return (
        Path(path).name[-240:]
        if isinstance(path, (str, Path))
        else hashlib.blake2b(media.canonical_bytes(source), digest_size=8).hexdigest()
    )


def _decoded(source: Any, limits: Limits) -> Tensor:
    path = source.get("path") if isinstance(source, dict) else source
    if isinstance(path, str) and Path(path).suffix.lower() in VIDEOS - {".gif"}:
        return media.video(source, limits)
    return media.image(source, limits)


def _looked_at(stored: Stored) -> Stored:
    """Reads the first pairs. Errors: UserError where there is none, or where sizes differ."""
    if not stored.first(LOOK):
        raise stored.unusable()
    for name, why in stored.broken.items():
        if why.startswith("size ["):
            raise UserError(f"records: {name}: {why}")
    stored.dropped = dict.fromkeys(stored.dropped, 0)
    return stored
