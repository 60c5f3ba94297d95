"""Preference data about pictures and videos, whose answers are texts, as a stream without end: from files and from the hub.

Media stay where they are and are known by their paths; those that come inside of the data are written once to a folder, named by what
is in them.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from mmalign import media
from mmalign.data import picture_schemas
from mmalign.data.stored import Hub, Stored, hub
from mmalign.data.tables import Block, Row, blocks, in_order
from mmalign.data.texts import LOOK
from mmalign.data.texts import made as made_of_texts
from mmalign.media import Broken, Limits
from mmalign.records import Pair, Record
from mmalign.types import Prompt, UserError

__all__ = ["hub_picture_texts", "picture_prompts", "picture_texts"]

Named = Literal["auto", "preference", "rlhf_v", "rlaif_v", "mm_rlhf", "povid"]
SCHEMAS: dict[str, picture_schemas.Schema] = {
    "preference": picture_schemas.preference, "rlhf_v": picture_schemas.rlhf_v, "rlaif_v": picture_schemas.rlaif_v,
    "mm_rlhf": picture_schemas.preference, "povid": picture_schemas.povid,
}  # fmt: skip


def picture_texts(  # how a data set of others is read
    path: str, *, schema: Named = "auto", columns: dict[str, str] | None = None, folder: str | None = None, cache: str | None = None,
    ties: Literal["soft", "drop"] = "soft", animated: media.Animated = "refuse", max_text: int = 2**20, max_bytes: int = 64 * 2**20,
    max_pixels: int = 64 * 10**6,
) -> Stored:  # fmt: skip
    """Pairs of answers about pictures or videos in local files: JSONL, JSON, CSV, parquet or tar, or a folder of them.

    Args:
        path: a file, or a folder of files. A prompt becomes a conversation that holds its media as ``{type: image, path: ...}``.
        schema: ``preference`` (prompt, chosen, rejected, and image, images, video or videos: TRL's), ``rlhf_v`` (RLHF-V-Dataset: image,
            and text with question, chosen, rejected), ``rlaif_v`` (RLAIF-V-Dataset: image, question, chosen, rejected), ``mm_rlhf``
            (dpo_pairs.jsonl: prompt, chosen, rejected, image or video), ``povid`` (image, conversations, rejected_conversations), or
            ``auto``, which looks at the first row's columns. See ``data/picture_schemas.py``.
        columns: what ``prompt``, ``chosen``, ``rejected``, ``image``, ... are called here.
        folder: where relative paths of media start, if not at the file. cache: where media that come as bytes are written, by default
            ``$XDG_CACHE_HOME/mmalign/media``.
        ties: ``soft``, a tie pulls the margin to 0; ``drop``, ties are passed over. Pairs without a label are always passed over.
        animated: ``refuse`` animated images, as broken, or take the ``first`` frame.
        max_text: bytes of one text. max_bytes, max_pixels: of one file, and of one image; more is broken, and is not decoded.

    Every image is decoded once before it is used; of a video only the file is looked at. A record that cannot be used is put aside with
    its id and the reason (``Stored.broken``), and the stream goes on. Errors: UserError, after a look at the first records, for no
    file, no schema, no usable pair.
    """
    limits = Limits(max_bytes, max_pixels, animated=animated)
    return _looked_at(blocks(path), schema, columns, ties, max_text, Media(limits, folder, cache))


def hub_picture_texts(  # how a data set of others is read
    name: str, *, split: str = "train", config: str | None = None, streaming: bool = True, schema: Named = "auto",
    columns: dict[str, str] | None = None, folder: str | None = None, cache: str | None = None, ties: Literal["soft", "drop"] = "soft",
    animated: media.Animated = "refuse", max_text: int = 2**20, max_bytes: int = 64 * 2**20, max_pixels: int = 64 * 10**6,
) -> Stored:  # fmt: skip
    """Pairs of answers about pictures of a data set that the Hugging Face ``datasets`` library loads by ``name``, or from a folder.

    streaming: read it as it comes, in a shuffle buffer of 1,000 records, instead of downloading all of it first; a resumed run then
    reads over what it has seen. The rest is as in ``picture_texts``. Errors: UserError where the data set or the split is not there.
    """
    limits = Limits(max_bytes, max_pixels, animated=animated)
    return _looked_at(hub(name, config, split, streaming), schema, columns, ties, max_text, Media(limits, folder, cache))


def picture_prompts(
    path: str, *, columns: dict[str, str] | None = None, folder: str | None = None, cache: str | None = None, limit: int | None = None,
    animated: media.Animated = "refuse", max_bytes: int = 64 * 2**20, max_pixels: int = 64 * 10**6,
) -> list[Any]:  # fmt: skip
    """Prompts with pictures or videos, as conversations, from files as ``picture_texts`` reads them; what else a row holds is a column.

    columns: what ``prompt`` (or ``question``), ``image``, ``images``, ``video``, ``videos`` are called here. limit: the first so many. Rows
    that cannot be used are left out, and how many is said. The rest is as in ``picture_texts``. Errors: UserError for no usable row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"prompts.limit: got {limit}, takes 1 or more")
    files, names = Media(Limits(max_bytes, max_pixels, animated=animated), folder, cache), columns or {}
    picture_schemas.renamed(names, picture_schemas.preference)
    found: list[Any] = []
    taken = {*names.values(), *("prompt", "question", "image", "images", "video", "videos")}
    broken: dict[str, str] = {}
    for _, name, row in in_order(blocks(path), seed=None):
        try:
            if isinstance(row, Broken):
                raise row
            prompt = picture_schemas.prompt({**row, **{own: row[theirs] for own, theirs in names.items() if theirs in row}})
            content = [{**turn, "content": files.inside(turn["content"])} for turn in prompt]
            columns = {key: value for key, value in row.items() if key not in taken}
            found.append(Prompt(content, columns) if columns else content)
        except Broken as error:
            broken[name] = str(error)
        if len(found) == limit:
            break
    first = next((f"{name}: {why}" for name, why in broken.items()), "no row")
    if not found:
        raise UserError(f"prompts: {path}: no usable row ({len(broken)} broken; {first})")
    if broken:
        warnings.warn(f"prompts: {path}: {len(broken)} rows are left out ({first})", stacklevel=2)
    return found


class Media:
    """Sources of media -> paths of files that were looked at; see ``picture_texts``."""

    def __init__(self, limits: Limits, folder: str | None, cache: str | None):
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.limits, self.folder = limits, None if folder is None else Path(folder)
        self.cache = Path(cache) if cache is not None else home / "mmalign" / "media"
        self.seen: set[tuple[str, int, int]] = set()
        if self.folder is not None and not self.folder.is_dir():
            raise UserError(f"records.folder: no such folder: {folder}")

    def __call__(self, kind: str, source: Any) -> str:
        """The path of a medium. Raises Broken where it cannot be used."""
        content = source.get("bytes") if isinstance(source, Mapping) else source
        if isinstance(content, (bytes, bytearray, memoryview)):
            return str(self._written(kind, bytes(content)))
        path = source.get("path") if isinstance(source, Mapping) else source
        if isinstance(path, str) and self.folder is not None and not media.is_address(path) and not Path(path).is_file():
            path = str(self.folder / path)
        return self._known(kind, path)

    def inside(self, content: Any) -> Any:
        """A turn's content with every medium in it as a file that can be used. Raises Broken."""
        if isinstance(content, str):
            return content
        return [part if part["type"] == "text" else {**part, "path": self(part["type"], part["path"])} for part in content]

    def _known(self, kind: str, path: Any) -> str:
        """A file that was looked at, or is now."""
        if isinstance(path, str) and Path(path).is_file():
            stat = Path(path).stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key in self.seen:
                return path
            self._look(kind, path)
            self.seen.add(key)
            return path
        self._look(kind, path)  # says what is wrong with it
        return str(path)

    def _look(self, kind: str, source: Any) -> None:
        if kind == "image":
            media.picture(source, self.limits)
        else:
            media.read_bytes(source, self.limits)

    def _written(self, kind: str, content: bytes) -> Path:
        """Bytes as a file named by their hash, which appears whole or not at all."""
        place = self.cache / hashlib.sha256(content).hexdigest()[:40]
        if not place.is_file():
            self._look(kind, content)
            self.cache.mkdir(parents=True, exist_ok=True)
            half = place.with_suffix(f".{os.getpid()}")
            half.write_bytes(content)
            half.replace(place)
        return place


def _looked_at(source: list[Block] | Hub, schema: str, columns: dict[str, str] | None, ties: str, max_text: int, files: Media) -> Stored:
    for key, value, takes in (("schema", schema, ("auto", *SCHEMAS)), ("ties", ties, ("soft", "drop"))):
        if value not in takes:
            raise UserError(f"records.{key}: got {value!r}, takes {', '.join(takes)}")
    if max_text < 1:
        raise UserError(f"records.max_text: got {max_text}, takes 1 or more")
    names = columns or {}
    picture_schemas.renamed(names, picture_schemas.preference)

    def guess(row: Row) -> picture_schemas.Schema:
        found = SCHEMAS.get(schema) or picture_schemas.guess(
            {**row, **{own: row[theirs] for own, theirs in names.items() if theirs in row}}
        )
        return picture_schemas.renamed(names, found) if names else found

    found = Stored(source, guess=guess, made=_made(made_of_texts(ties, max_text), files), what="pair")
    if not found.first(LOOK):
        raise found.unusable()
    found.dropped = dict.fromkeys(found.dropped, 0)
    return found


def _made(of_texts: Callable[[Any], Record], files: Media) -> Callable[[Any], Record]:
    """Pairs whose texts say something and whose media are files that can be used."""

    def made(draft: Pair) -> Record:
        pair = of_texts(draft)
        if not isinstance(pair, Pair) or isinstance(pair.prompt, str):
            return pair
        return pair._replace(prompt=[{**turn, "content": files.inside(turn["content"])} for turn in pair.prompt])

    return made
