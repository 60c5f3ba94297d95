"""Whether a file ends where it says that it ends: what decoders of cut files do not notice, or not always.

Pillow refuses most cut images by itself; an animated GIF that lost frames is another animation to it, and a PNG that lost its orientation
another picture. FFmpeg plays what is left of a video. A format's own word for its length is asked here: the boxes of MP4, MOV and JPEG
2000, the segment of Matroska and WebM, the RIFF of AVI, the blocks of GIF and PNG, the pages of Ogg, the objects of ASF, the packets of
MPEG, the tags of FLV and the size that it may name, the index of a fragmented MP4. Some are written piece by piece, by who does not know
yet where they end: MPEG-TS and MPEG programs between two packets, FLV without its size, fragmented MP4 without an index in front, and live
WebM between two clusters or blocks. Cut there, nothing in them says so, and neither does this. What is of more pieces than any real file
is refused as well, because decoders walk them one by one, for minutes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator

CUT = "not decodable: cut off, it ends before the end that it names itself"
PIECES = 200_000  # blocks of a GIF (two for a frame), chunks, boxes, elements
TAGS = 2_000_000  # of FLV, where every bit of sound is one
PACKETS = ((188, 0), (192, 4), (204, 0))  # of MPEG-TS: bytes of one, and those before its first
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
    at, end, awaits_data = 0, 0, False
    for _ in _pieces():
        if len(data) - at < 8:
            break
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind not in BOXES:
            return end > len(data) or (awaits_data and at >= len(data))  # padding, or something that was appended
        if size == 0:  # up to the end of the file
            return kind == b"jp2c" and _code_stream(data)
        box = struct.unpack_from(">Q", data, at + 8)[0] if size == 1 else max(8, size)
        if kind == b"sidx":
            end = max(end, _indexed(data, at + 8, at + box))
        awaits_data = kind == b"moof" or (awaits_data and kind != b"mdat")
        at += box
    return max(at, end) > len(data) or awaits_data or any(data[at:])


def _indexed(data: bytes, at: int, anchor: int) -> int:
    """Where the fragments end that the index of a fragmented MP4 names; ``anchor`` is behind it."""
    long = data[at] > 0
    first = struct.unpack_from(">Q" if long else ">I", data, at + (20 if long else 16))[0]
    at += 28 if long else 20
    count = struct.unpack_from(">H", data, at + 2)[0]
    sizes = (struct.unpack_from(">I", data, at + 4 + 12 * number)[0] & 0x7FFFFFFF for number in range(count))
    return int(anchor + first + sum(sizes))


def _code_stream(data: bytes) -> bool:
    """Of JPEG 2000: its end-of-codestream mark."""
    return not data.rstrip(b"\0").endswith(b"\xff\xd9")


def _riff(data: bytes) -> bool:
    at = 0
    for _ in _pieces():
        if data[at : at + 4] != b"RIFF":  # a long AVI has several
            break
        at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    return len(data) + 1 < at


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


def _packet_size(data: bytes) -> tuple[int, int] | None:
    """Bytes of a packet of MPEG-TS, and those before the first; None for what does not begin with three of them."""
    for size, first in PACKETS:
        if len(data) > 3 * size and all(data[first + number * size] == 0x47 for number in range(3)):
            return size, first
    return None


def _transport(data: bytes) -> bool:
    """Of MPEG-TS: whether its last packet is whole, and whatever named its length in one of them."""
    packet = _packet_size(data)
    assert packet is not None
    size, first = packet
    lacks: dict[int, int] = {}  # bytes that are still to come, by stream
    for at in range(first, len(data), size):
        if data[at] != 0x47:
            return False  # padding, or something that was appended
        if at + 188 > len(data):
            return True
        begins, stream = data[at + 1] & 0x40, (data[at + 1] & 0x1F) << 8 | data[at + 2]
        start = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
        content = data[start : at + 188] if data[at + 3] & 0x10 else b""
        if begins and content.startswith(b"\0\0\1") and len(content) > 6:
            length = struct.unpack_from(">H", content, 4)[0]  # 0: not known, as films are written mostly
            lacks[stream] = length - len(content) + 6 if length else 0
        elif stream in lacks:
            lacks[stream] -= len(content)
    return any(lack > 0 for lack in lacks.values())


def _program(data: bytes) -> bool:
    """Of an MPEG program (VOB, MPG): whether its last packet is whole."""
    at = 0
    for _ in _pieces():
        if data[at : at + 3] != b"\0\0\1" or data[at + 3] < 0xB9:
            break  # padding, or something that was appended
        if data[at + 3] == 0xB9:  # the end
            return False
        if data[at + 3] == 0xBA:
            at += 14 + (data[at + 13] & 7) if data[at + 4] >> 6 == 1 else 12
        else:
            at += 6 + struct.unpack_from(">H", data, at + 4)[0]
    return at > len(data)


def _flash(data: bytes) -> bool:
    """Of FLV: its tags, and the size of the file where the first of them names it."""
    at = struct.unpack_from(">I", data, 5)[0] + 4
    named = data[at : at + 4096].find(b"\0\x08filesize\0") + at
    if data[at] == 18 and named >= at and struct.unpack_from(">d", data, named + 11)[0] > len(data):
        return True
    for _ in _pieces(TAGS):
        if at >= len(data) or data[at] & 0x1F not in (8, 9, 18):
            break  # the end, padding, or something that was appended
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")
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
    (lambda data: data.startswith(b"FLV\1"), _flash),
    (lambda data: data.startswith(b"\0\0\1\xba"), _program),
    (lambda data: _packet_size(data) is not None, _transport),
    (lambda data: data[:2] in (b"P1", b"P2", b"P3") and data[2:3].isspace(), _plain_map),
)
