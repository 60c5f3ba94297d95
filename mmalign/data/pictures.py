"""Preference data about pictures and videos, whose answers are texts, as a stream without end: from files and from the hub.

Media stay where they are and are known by their paths; those that come inside of the data are written once to a folder, named by what
is in them.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from mmalign import media
from mmalign.arguments.ranges import Count, Size
from mmalign.data._reading.parsing import excerpt, is_file, is_folder
from mmalign.data._reading.stored import Hub, Schema, Stored, hub
from mmalign.data._reading.tables import Block, Row, blocks, in_order, located
from mmalign.data._schemas import columns as layouts
from mmalign.data._schemas import pictures as picture_schemas
from mmalign.data._schemas import texts as text_schemas
from mmalign.data._schemas.notices import Notice
from mmalign.data.texts import LOOK, usable
from mmalign.media import Broken, Limits
from mmalign.records import Record, Unseen, looked_at
from mmalign.types import Prompt, UserError

__all__ = ["hub_picture_texts", "picture_prompts", "picture_texts"]
OUTPUTS = {"picture_texts": "texts", "hub_picture_texts": "texts"}  # what they read: for who checks a config

SchemaName = Literal["auto", "preference", "rlhf_v", "rlaif_v", "mm_rlhf", "povid", "thumbs", "demonstrations", "ranked", "ultrafeedback"]
KINDS = {"rlaif_v": "preference", "mm_rlhf": "preference", "povid": "preference"}  # data sets by their names: what their rows are


def picture_texts(  # how a data set of others is read
    path: str | list[str], *, schema: SchemaName = "auto", columns: dict[str, str] | None = None, folder: str | None = None,
    cache: str | None = None, ties: Literal["soft", "drop"] = "soft", animated: media.Animated = "refuse", max_text: Size = 2**20,
    max_bytes: Size = 64 * 2**20, max_pixels: Size = 64 * 10**6,
) -> Stored:  # fmt: skip
    """Answers about pictures or videos in local files: JSONL, JSON, CSV, TSV, parquet, arrow or tar, or a folder of them.

    Args:
        path: a file, a folder of files, or a list of these. A prompt becomes a conversation that holds its media as
            ``{type: image, path: ...}``.
        schema: ``preference`` (prompt, chosen, rejected, and image, images, video or videos: TRL's), ``rlhf_v`` (RLHF-V-Dataset: image,
            and text with question, chosen, rejected), ``rlaif_v`` (RLAIF-V-Dataset: image, question, chosen, rejected), ``mm_rlhf``
            (dpo_pairs.jsonl: prompt, chosen, rejected, image or video), ``povid`` (image, conversations, rejected_conversations),
            ``thumbs`` (prompt, completion, label), ``demonstrations`` (LLaVA's and other supervised rows without a label, all good),
            ``ranked`` and ``ultrafeedback`` as in ``texts``, or ``auto``, which looks at the first row's columns. See ``data/README.md``.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``image``, ... are called here.
        folder: where relative paths of media start, if not at the file. cache: where media that come as bytes are written, by default
            ``$XDG_CACHE_HOME/mmalign/media``.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Pairs without a label are always passed over.
        animated: ``refuse`` animated images, as broken, or take the ``first`` frame.
        max_text: bytes of one text. max_bytes, max_pixels: of one file, and of one image; more is broken, and is not decoded.

    Every image is decoded once before it is used, by the process whose row it is; of a video only the file is looked at. Columns that
    nobody reads are named once. A record that cannot be used is put aside with its id and the reason (``Stored.broken``, or the run's
    ``broken.jsonl``), and the stream goes on.

    Errors: UserError, after a look at the first records, for no file, no schema, no usable pair.
    """
    limits = Limits(max_bytes, max_pixels, animated=animated)
    return _looked_at(blocks(path, most=max_bytes), schema, columns, ties, max_text, Media(limits, folder, cache))


def hub_picture_texts(  # how a data set of others is read
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None, streaming: bool = True,
    schema: SchemaName = "auto",
    columns: dict[str, str] | None = None, folder: str | None = None, cache: str | None = None, ties: Literal["soft", "drop"] = "soft",
    animated: media.Animated = "refuse", max_text: Size = 2**20, max_bytes: Size = 64 * 2**20, max_pixels: Size = 64 * 10**6,
) -> Stored:  # fmt: skip
    """Answers about pictures or videos of a data set that the Hugging Face ``datasets`` library loads; see ``picture_texts``.

    Args:
        name: of the data set on the hub, or a folder. revision: a branch, a tag or a commit of it; the newest by default. A run that is
            resumed goes on with the commit that it began with, or not at all.
        streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
            reads over what it has seen.
        schema: what the rows are, as in ``picture_texts``; ``auto`` looks at the first row's columns.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``image``, ... are called here, otherwise.
        folder: where relative paths of media start. cache: where media that come as bytes are written, by default
            ``$XDG_CACHE_HOME/mmalign/media``.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over.
        max_text: bytes of one text; more is broken.

    Errors: UserError where the data set or the split is not there, and as in ``picture_texts``.
    """
    limits = Limits(max_bytes, max_pixels, animated=animated)
    return _looked_at(hub(name, config, split, streaming, revision), schema, columns, ties, max_text, Media(limits, folder, cache))


def picture_prompts(
    path: str, *, columns: dict[str, str] | None = None, folder: str | None = None, cache: str | None = None, limit: Count | None = None,
    animated: media.Animated = "refuse", max_bytes: Size = 64 * 2**20, max_pixels: Size = 64 * 10**6,
) -> list[Any]:  # fmt: skip
    """Prompts with pictures or videos, as conversations, from files as ``picture_texts`` reads them; what else a row holds is a column.

    Args:
        columns: what ``prompt`` (or ``question``), ``image``, ``images``, ``video``, ``videos`` are called here.
        folder: where relative paths of media start, if not at the file. cache: where media that come as bytes are written, by default
            ``$XDG_CACHE_HOME/mmalign/media``.
        limit: the first so many.

    A conversation that ends with an answer is asked up to there; its last words are the column ``answer``, unless there is one. Rows that
    cannot be used are left out, and how many is said.

    Errors: UserError for no usable row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"prompts.limit: got {limit}, takes 1 or more")
    files, names = Media(Limits(max_bytes, max_pixels, animated=animated), folder, cache), columns or {}
    layouts.checked(names)
    prompts: list[Any] = []
    broken: dict[str, str] = {}
    for _, name, row in in_order(blocks(path, most=max_bytes), seed=None):
        try:
            if isinstance(row, Broken):
                raise row
            prompt, beside = picture_schemas.prompt(row, names)
            content = looked_at([{**turn, "content": files.inside(turn["content"])} for turn in prompt])
            prompts.append(Prompt(content, beside) if beside else content)
        except Broken as error:
            broken[name] = str(error)
        if len(prompts) == limit:
            break
    first = next((f"{name}: {why}" for name, why in broken.items()), "no row")
    if not prompts:
        raise UserError(f"prompts: {path}: no usable row ({len(broken)} broken; {first})")
    if broken:
        warnings.warn(f"prompts: {path}: {len(broken)} rows are left out ({first})", stacklevel=2)
    return prompts


class Media:
    """Sources of media -> paths of files; who uses one looks at it first (``records.looked_at``), once. See ``picture_texts``."""

    def __init__(self, limits: Limits, folder: str | None, cache: str | None):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.limits, self.folder = limits, None if folder is None else Path(folder)
        self.cache = Path(cache) if cache is not None else home / "mmalign" / "media"
        self.seen: set[tuple[str, int, int]] = set()
        if self.folder is not None and not is_folder(self.folder):
            raise UserError(f"records.folder: no such folder: {str(folder)[:240]}")

    def __call__(self, kind: str, source: Any) -> Unseen:
        """The path of a medium. Errors: Broken where there is none."""
        content = source.get("bytes") if isinstance(source, Mapping) else source
        if isinstance(content, (bytes, bytearray, memoryview)):
            return self._unseen(kind, str(self._written(bytes(content))))
        if isinstance(content, Image.Image):
            return self._unseen(kind, str(self._written(_as_png(content))))
        path = located(source, self.folder)
        path = path.get("path") if isinstance(path, Mapping) else path
        if not isinstance(path, (str, Path)):
            raise Broken(f"nothing there: takes a path or bytes, got {excerpt(path)}")
        if self.folder is not None and not media.is_address(path) and not is_file(path):  # of a data set that is in no file
            path = str(self.folder / path)
        if not is_file(path) and not media.is_address(path):
            raise Broken(f"no such file: {str(path)[:240]}")
        return self._unseen(kind, str(path))

    def inside(self, content: Any) -> Any:
        """A turn's content with every medium in it as a file that is there. Errors: Broken."""
        if isinstance(content, str):
            return content
        return [part if part["type"] == "text" else {**part, "path": self(part["type"], part["path"])} for part in content]

    def _unseen(self, kind: str, path: str) -> Unseen:
        return Unseen(path, partial(self._look, kind))

    def _look(self, kind: str, path: str) -> None:
        """Errors: Broken for a medium that cannot be used."""
        key = None
        if is_file(path):
            stat = Path(path).stat()
            key = (str(path), stat.st_size, stat.st_mtime_ns)
            if key in self.seen:
                return
        if kind == "image":
            media.picture(str(path), self.limits)
        else:
            media.read_whole(str(path), self.limits)
        self.seen |= set() if key is None else {key}

    def _written(self, content: bytes) -> Path:
        """Bytes as a file named by their hash, which appears whole or not at all."""
        place = self.cache / hashlib.sha256(content).hexdigest()[:40]
        if not place.is_file():
            self.cache.mkdir(parents=True, exist_ok=True)
            half = place.with_suffix(f".{os.getpid()}")
            half.write_bytes(content)
            half.replace(place)
        return place


def _as_png(picture: Any) -> bytes:
    """A picture that somebody decoded already, without loss."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _looked_at(source: list[Block] | Hub, schema: str, columns: dict[str, str] | None, ties: str, max_text: int, files: Media) -> Stored:
    for key, value, takes in (("schema", schema, get_args(SchemaName)), ("ties", ties, ("soft", "drop"))):
        if value not in takes:
            raise UserError(f"records.{key}: got {value!r}, takes {', '.join(takes)}")
    if max_text < 1:
        raise UserError(f"records.max_text: got {max_text}, takes 1 or more")
    names = columns or {}
    layouts.checked(names)
    notice = Notice("records")

    def guess(row: Row) -> Schema:
        kind = picture_schemas.kind_of(row, names) if schema == "auto" else KINDS.get(schema, schema)
        placed = partial(_put, names)
        own = "preference" if kind == "rlhf_v" else kind
        read = text_schemas.reader(own, names, score="ratings", form="turns", separator="\n", notice=notice, placed=placed)
        return read if kind != "rlhf_v" else lambda row, name: read(picture_schemas.opened(row), name)

    stored = Stored(source, guess=guess, finish=_with_files(usable(ties, max_text), files), what="pair")
    if not stored.first(LOOK):
        raise stored.unusable()
    stored.dropped = dict.fromkeys(stored.dropped, 0)
    return stored


def _put(names: layouts.Names, record: Any, row: Row, layout: layouts.Layout) -> Any:
    return picture_schemas.put(record, row, names, layout)


def _with_files(of_texts: Callable[[Any], Record], files: Media) -> Callable[[Any], Record]:
    """Records whose texts say something and whose media are files that are there."""

    def finish(draft: Any) -> Record:
        record = of_texts(draft)
        if isinstance(record.prompt, str):
            return record
        return record._replace(prompt=[{**turn, "content": files.inside(turn["content"])} for turn in record.prompt])

    return finish
