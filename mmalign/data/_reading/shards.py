"""Webdataset shards: tar files whose members that share a name up to the first dot are a row.

Nothing is held in memory that an archive only says it has: a member's size is known from its header before it is read, also where it is
sparse or the archive is compressed, and a compressed archive may not unfold without end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.data._reading.parsing import parsed, short, words
from mmalign.media import Broken
from mmalign.types import UserError

Row = dict[str, Any]
MEMBER = 64 * 2**20  # bytes of a member, as `Limits` has it for a file
HEADER = 2**20  # bytes of a header of names and attributes
UNFOLDED = 1000  # bytes of a compressed archive for each byte of its file, past the first GiB
END = 64 * 2**10  # bytes behind the end that are looked at: writers fill the last record up with zeros
DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError)  # by what unpacks and reads headers


def shard(file: Path, most: int = MEMBER) -> tuple[int, Callable[[int], Row]]:
    """The number of rows of a tar file and a function from a row's number to the row; ``most``: bytes of one member.

    ``.txt`` and ``.cls`` are text, ``.json`` is an object whose keys join the row's; images stay bytes. ``jpg_0.jpg`` and ``0.jpg`` are
    called ``jpg_0`` too. Errors: UserError for a file that is no tar, or ends before its end; Broken for a member that cannot be read.
    """
    rows: dict[str, dict[str, tarfile.TarInfo]] = {}
    unpacked = _unpacked(file)
    try:
        archive = tarfile.TarFile(fileobj=_Bounded(unpacked, file.stat().st_size, most), mode="r")  # type: ignore[arg-type]
        for member in archive:
            if member.isfile():
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                rows.setdefault(f"{folder}/{key}", {})[kind] = member
        _ended(archive)
    except DAMAGED as error:
        unpacked.close()
        raise UserError(f"records.path: {file} is not readable as tar: {short(error)}") from error
    names = list(rows)

    def read(number: int) -> Row:
        row: Row = {"__key__": names[number].lstrip("/")}
        for kind, member in rows[names[number]].items():
            row.update(_column(kind, _content(archive, member, most)))
        return row

    return len(names), read


def _unpacked(file: Path) -> Any:
    """The file, or what is in it where it is compressed; kept open as long as its rows are read."""
    opened = file.open("rb")
    start = opened.read(6)
    opened.seek(0)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return opener(opened, "rb")
    return opened


class _Bounded:
    """A file that gives no more at once than a member may have, and no more in all than an archive of its size should hold."""

    def __init__(self, file: Any, stored: int, most: int):
        self.file, self.most, self.whole = file, max(most, HEADER), max(2**30, UNFOLDED * stored)

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self.most:
            raise tarfile.ReadError(f"a part of {size:,} bytes, takes at most {self.most:,}")
        content: bytes = self.file.read(size)
        return content

    def seek(self, place: int) -> int:
        if place > self.whole:
            raise tarfile.ReadError(f"unfolds to more than {self.whole:,} bytes")
        return int(self.file.seek(place))

    def tell(self) -> int:
        return int(self.file.tell())


def _ended(archive: Any) -> None:
    """That an archive was read to its end: a block of zeros, and nothing else behind it.

    tarfile takes a header that it cannot read for the end, and a file that is cut between members for a whole one.
    """
    archive.fileobj.seek(archive.offset)
    rest = archive.fileobj.read(END)
    if len(rest) < tarfile.BLOCKSIZE or rest[: tarfile.BLOCKSIZE].strip(b"\0"):
        raise tarfile.ReadError(f"cut or damaged at byte {archive.offset:,}: no end of the archive there")
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"goes on behind its end at byte {archive.offset:,} (takes one archive in a file)")


def _content(archive: Any, member: tarfile.TarInfo, most: int) -> bytes:
    if member.size > most:
        raise Broken(f"{member.name[:120]}: {member.size:,} bytes, takes at most {most:,}")
    try:
        stored = archive.extractfile(member)
        content: bytes = b"" if stored is None else stored.read()
    except DAMAGED as error:
        raise Broken(f"{member.name[:120]}: not readable: {short(error)}") from error
    if len(content) != member.size:
        raise Broken(f"{member.name[:120]}: {len(content):,} bytes of {member.size:,}")
    return content


def _column(kind: str, content: bytes) -> Row:
    end = kind.rpartition(".")[2].lower()
    if end == "json":
        columns = parsed(content)
        if not isinstance(columns, dict):
            raise Broken(f"{kind}: got {type(columns).__name__}, takes an object")
        return {str(key): value for key, value in columns.items()}
    name = kind.rpartition(".")[0] or kind
    name = f"jpg_{name}" if name in ("0", "1") else name
    if end in ("txt", "caption", "cls"):
        return {"caption" if kind == "txt" else name: words(content, kind).strip()}
    return {name: content}
