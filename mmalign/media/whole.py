"""Whether a file ends where it says that it ends: what decoders of cut files do not notice, or not always.

Pillow refuses most cut images by itself; an animated GIF that lost frames is another animation to it, and a PNG that lost its orientation
another picture. FFmpeg plays what is left of a video. A format's own word for its length is asked here: the boxes of MP4, MOV and JPEG
2000, the segment of Matroska and WebM, the RIFF of AVI, the blocks of GIF and PNG, the pages of Ogg, the objects of ASF. Streams that may
end anywhere (MPEG-TS, FLV, fragmented MP4 and live WebM between two of their pieces) say nothing, and neither does this. What is of more
pieces than any real file is refused as well, because decoders walk them one by one, for minutes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

CUT = "not decodable: cut off, it ends before the end that it names itself"
PIECES = 200_000  # blocks of a GIF (two for a frame), chunks, boxes, elements
SCANS = 100  # of a JPEG, which has 1 to 4, or some ten where it is progressive: each of them is a pass over all of its pixels
SEGMENT, CLUSTER = 0x18538067, 0x1F43B675  # Matroska's elements whose length may be left open

ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
NEXT_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
BOXES = {
    b"ftyp", b"styp", b"moov", b"moof", b"mfra", b"mdat", b"sidx", b"ssix", b"prft", b"emsg", b"pdin", b"pnot", b"free", b"skip", b"wide",
    b"meta", b"udta", b"uuid", b"PICT", b"jP  ", b"jp2h", b"jp2c", b"jp2i", b"xml ", b"asoc", b"jumb",
}  # fmt: skip


class _TooMany(Exception):
    """More pieces than a real file has."""


def fault(data: bytes) -> str:
    """Why a file cannot be whole, in words of a message: it is shorter than it says itself, or of too many pieces. Nothing for others,
    for formats that are not looked into, and for damage elsewhere."""
    for begins, is_cut in _FORMATS:
        if begins(data):
            try:
                return CUT if is_cut(data) else ""
            except (IndexError, struct.error):  # the file ends inside of the very number that is read
                return CUT
            except _TooMany as error:
                return f"not decodable: of more than {error} pieces"
    return ""


def _pieces(most: int = PIECES) -> Iterator[None]:
    for _ in range(most):
        yield
    raise _TooMany(most)


def _png(data: bytes) -> bool:
    at = 8
    for _ in _pieces():
        if data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + struct.unpack_from(">I", data, at)[0]
    return len(data) < at + 12


def _jpeg(data: bytes) -> bool:
    at, scans = 2, _pieces(SCANS)
    for _ in _pieces():
        marker = NEXT_MARKER.search(data, at)  # behind the data of a scan, in which 0xff has a 0 or a restart beside it
        if marker is None:
            return True
        at, kind = marker.end(), data[marker.end() - 1]
        if kind == 0xD9:  # the end; phones write further pictures and films behind it
            break
        if kind == 0xDA:
            next(scans)
        if kind not in (0x01, 0xD8):
            at += struct.unpack_from(">H", data, at)[0]
    return False


def _gif(data: bytes) -> bool:
    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    at = 13 + colours(data[10])
    for _ in _pieces():
        if data[at] == 0x3B:  # the trailer
            break
        if data[at] not in (0x21, 0x2C):  # neither extension nor image: what readers skip
            at += 1
            continue
        at += 2 if data[at] == 0x21 else 11 + colours(data[at + 9])
        while data[at]:
            at += 1 + data[at]
        at += 1
    return False


def _boxes(data: bytes) -> bool:
    """Of MP4, MOV, JPEG 2000, AVIF."""
    at = 0
    for _ in _pieces():
        if len(data) - at < 8:
            break
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind not in BOXES:
            return False  # padding, or something that was appended
        if size == 0:  # up to the end of the file
            return kind == b"jp2c" and _code_stream(data)
        at += struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else max(8, size)
    return at > len(data) or any(data[at:])


def _code_stream(data: bytes) -> bool:
    """Of JPEG 2000: its end-of-codestream mark."""
    return not data.rstrip(b"\0").endswith(b"\xff\xd9")


def _riff(data: bytes) -> bool:
    return len(data) + 1 < 8 + struct.unpack_from("<I", data, 4)[0]


def _matroska(data: bytes) -> bool:
    at = 0
    for _ in _pieces():
        if at >= len(data):
            break
        length = 9 - data[at].bit_length()
        if length > 4:
            return False  # no name of an element
        name = int.from_bytes(data[at : at + length], "big")
        at += length
        length = 9 - data[at].bit_length()
        if length > 8 or at + length > len(data):
            return length <= 8
        size = int.from_bytes(data[at : at + length], "big") & (1 << 7 * length) - 1
        at += length
        is_open = size == (1 << 7 * length) - 1
        if (name == SEGMENT and at + size <= len(data)) or (name in (SEGMENT, CLUSTER) and is_open):
            continue  # into it
        at += size
    return at > len(data)


def _ogg(data: bytes) -> bool:
    at, ended = 0, {}
    for _ in _pieces():
        if data[at : at + 4] != b"OggS":
            break
        ended[data[at + 14 : at + 18]] = bool(data[at + 5] & 4)  # whether the last page of each stream says that it is
        at += 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])
    return at > len(data) or not all(ended.values())


def _asf(data: bytes) -> bool:
    """Of WMV: its objects, of which the one before the index holds all packets."""
    at = 0
    for _ in _pieces():
        if len(data) - at < 24:
            break
        size = struct.unpack_from("<Q", data, at + 16)[0]
        if size < 24:
            return False  # of a live stream, or something that was appended
        at += size
    return at > len(data)


def _plain_map(data: bytes) -> bool:
    """Of PPM, PGM and PBM written in digits: a number may have lost its last ones."""
    return data[-1:].isdigit()


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], bool]], ...] = (
    (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _png),
    (lambda data: data.startswith(b"\xff\xd8"), _jpeg),
    (lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif),
    (lambda data: data[4:8] in BOXES, _boxes),
    (lambda data: data.startswith(b"\xff\x4f\xff\x51"), _code_stream),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"AVI ", _riff),
    (lambda data: data.startswith(b"\x1aE\xdf\xa3"), _matroska),
    (lambda data: data.startswith(b"OggS"), _ogg),
    (lambda data: data.startswith(ASF), _asf),
    (lambda data: data[:2] in (b"P1", b"P2", b"P3") and data[2:3].isspace(), _plain_map),
)
