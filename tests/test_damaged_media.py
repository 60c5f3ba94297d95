"""Files that are cut, damaged, of another kind, or on their side: read as a player shows them, or one line of Broken."""

from __future__ import annotations

import io
import itertools
import os
import runpy
import struct
import subprocess
import time
import zlib
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from PIL import Image, TiffImagePlugin

from mmalign import media
from mmalign.media import Broken, Limits, videos
from mmalign.media.whole import fault

av = pytest.importorskip("av")
FUZZ = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "fuzz" / "media.py"))
FIRST = Limits(animated="first")
COLOURS = {(-1, -1): (255, 0, 0), (1, -1): (0, 255, 0), (-1, 1): (0, 0, 255), (1, 1): (255, 255, 255)}  # of quarters, right and down


def refused(source, match, read=media.picture, limits=FIRST):
    with pytest.raises(Broken, match=match) as error:
        read(source, limits)
    assert "\n" not in str(error.value)


def quarters(width=64, height=48, pixels=(1, 1)):
    """A video whose four quarters have colours of their own, ``COLOURS``. pixels: how wide and how high one is shown."""
    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*pixels)
        picture = Image.new("RGB", (width, height))
        for (x, y), colour in COLOURS.items():
            picture.paste(colour, ((x + 1) * width // 4, (y + 1) * height // 4, (x + 3) * width // 4, (y + 3) * height // 4))
        for _ in range(4):
            for packet in stream.encode(av.VideoFrame.from_image(picture)):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return held.getvalue()


def growing() -> bytes:
    """A video whose frames are of 32 x 32, and then of 64 x 48."""
    held, number = io.BytesIO(), 0
    with av.open(held, "w", format="mpegts") as file:
        stream = file.add_stream("mpeg2video", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        large = av.CodecContext.create("mpeg2video", "w")
        large.width, large.height, large.pix_fmt, large.time_base, large.framerate = 64, 48, "yuv420p", Fraction(1, 8), Fraction(8)
        for encoder in (stream.codec_context, large):
            frame = Image.new("RGB", (encoder.width, encoder.height), "red")
            for picture in (frame, frame, frame, None):
                for packet in encoder.encode(None if picture is None else av.VideoFrame.from_image(picture)):
                    packet.time_base, packet.pts, packet.dts, packet.stream = Fraction(1, 8), number, number, stream
                    number += 1
                    file.mux(packet)
    return held.getvalue()


def with_matrix(data: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 with that display matrix in the header of its track."""
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    return data[:at] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + data[at + 36 :]


TURNS = [(a, 0, 0, d) for a, d in itertools.product((1, -1), repeat=2)] + [(0, b, c, 0) for b, c in itertools.product((1, -1), repeat=2)]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("limits", [Limits(frames=2), Limits(frames=2, size=(20, 20))])
def test_videos_are_upright(turn, limits):
    a, b, c, d = turn
    frames = media.footage(with_matrix(quarters(), *turn), limits).frames
    assert frames.shape == (2, 3, *(limits.size or ((48, 64) if a else (64, 48))))
    height, width = frames.shape[2:]
    for (x, y), colour in COLOURS.items():
        right, down = a * x + c * y, b * x + d * y  # where the matrix puts the quarter
        shown = frames[0, :, (2 + down) * height // 4, (2 + right) * width // 4]
        assert (shown.float() - torch.tensor(colour)).abs().max() < 40, (turn, x, y)


@pytest.mark.parametrize(
    ("pixels", "turn", "size", "shape"),
    [
        ((4, 3), (1, 0, 0, 1), None, (48, 85)),  # 64 x 4 / 3
        ((8, 9), (1, 0, 0, 1), None, (48, 57)),
        ((4, 3), (0, 1, -1, 0), None, (85, 48)),  # on its side as it is stored
        ((2, 1), (1, 0, 0, 1), (20, 20), (20, 20)),
    ],
)
def test_pixels_that_are_no_squares(pixels, turn, size, shape):
    frames = media.footage(with_matrix(quarters(pixels=pixels), *turn), Limits(frames=2, size=size)).frames
    assert frames.shape[2:] == shape
    corner = frames[0, :, 2, 2].float()
    assert (corner - torch.tensor(COLOURS[-1, -1] if turn[0] else COLOURS[-1, 1])).abs().max() < 40


def test_pixels_that_no_film_has_are_refused():
    refused(quarters(pixels=(10, 1)), "pixels 10 times as wide as high, takes 0.125 to 8", media.footage)
    refused(quarters(pixels=(1, 10)), "pixels 0.1 times as wide as high", media.footage)
    refused(quarters(pixels=(8, 1)), "512 x 48 pixels, takes at most 10000", media.footage, Limits(pixels=10_000))


def test_the_time_of_all_frames_together(monkeypatch):
    """The clocks go on by a second at each look: at the beginning, and at each packet."""
    own = videos.CLOCKS
    clocks = [itertools.count().__next__ for _ in own]
    monkeypatch.setattr("mmalign.media.videos.CLOCKS", clocks)
    refused(quarters(), r"^decoding took more than 3 s, after [1-4] frames$", media.footage, Limits(decoding=3.0))
    assert media.footage(quarters(), Limits(decoding=30.0)).length == 4
    clocks[own.index(time.process_time)] = lambda: 0  # of the processor's time nothing passes where a machine stands still
    assert media.footage(quarters(), Limits(decoding=3.0)).length == 4


def test_a_display_matrix_that_says_nothing_new():
    whole = media.footage(quarters(), Limits(frames=2)).frames
    assert torch.equal(media.footage(with_matrix(quarters(), 1, 0, 0, 1), Limits(frames=2)).frames, whole)


@pytest.mark.parametrize("name", sorted(FUZZ["images"]()))
def test_images_cut_anywhere(name):
    data = FUZZ["images"]()[name]
    if name in ("dds", "ico"):
        return refused(data, "no image that can be read, takes AVIF, BMP, GIF, JPEG, JPEG2000, MPO, PNG, PPM, TIFF, WEBP")
    assert not fault(data)
    whole = FUZZ["read"]("image", data)
    contents = []
    for length in {*range(1, len(data), 7), *range(len(data) - 40, len(data))}:
        try:
            contents.append(FUZZ["read"]("image", data[:length]))
        except Broken as error:
            assert "\n" not in str(error)
    assert all(torch.equal(content, whole) for content in contents)
    lossless = name.startswith(("mpo", "tiff", "pbm"))  # what is missing may be of other pictures, or padding
    assert lossless or not contents
    return None


@pytest.mark.parametrize("name", sorted({*FUZZ["videos"]()} - FUZZ["LOOSE"]))
def test_videos_cut_anywhere(name):
    data = FUZZ["videos"]()[name]
    assert not fault(data)
    whole = FUZZ["read"]("video", data)
    assert len(whole) == 9
    for length in {*range(1, len(data), len(data) // 20), *range(len(data) - 10, len(data) - 1)}:
        try:
            content = FUZZ["read"]("video", data[:length])
        except Broken as error:
            assert "\n" not in str(error)
        else:  # an index, or a word that says that this was all, stands behind the frames there
            assert name in ("mpeg", "wmv") and torch.equal(content, whole)


@pytest.mark.parametrize("name", ["png", "gif", "jp2", "j2k"])
def test_what_is_behind_the_end_is_not_missing(name):
    data = FUZZ["images"]()[name]
    assert not fault(data + bytes(50))
    assert name == "j2k" or not fault(data + b"\xff\x00\x17appended")


@pytest.mark.parametrize(("name", "mark"), [("ogv", b"OggS"), ("mkv", b"\x1fC\xb6u"), ("mp4, index first", b"mdat"), ("gif", b"!")])
def test_videos_cut_between_two_of_their_pieces(name, mark):
    data = FUZZ["videos"]()[name]
    at = data.rindex(mark) - 4 * (mark == b"mdat")
    refused(data[:at], "cut off|without frames", media.footage)


def test_a_code_stream_up_to_the_end_of_the_file_ends():
    """JPEG 2000 may leave the length of its last box open."""
    data = bytearray(FUZZ["images"]()["jp2"])
    at = data.index(b"jp2c") - 4
    data[at : at + 4] = bytes(4)
    assert not fault(bytes(data)) and all(fault(bytes(data[:length])) for length in range(at + 8, len(data)))


PIECES = {  # bytes of a piece, or how one begins, and how far before that; what they are in
    "ts": 188, "ts, h264": 188, "ts with sound": 188, "ts of discs": 192, "mp4 of a stream": (b"moof", 4), "mp4 in fragments": (b"mfra", 4),
    "webm of a stream, vp9": (b"\x1f\x43\xb6\x75", 0), "mpeg, long": (b"\0\0\1\xba", 0),
}  # fmt: skip


def places(data, piece):
    if isinstance(piece, int):
        return list(range(4 * piece, len(data), piece))
    return [at - piece[1] for at in range(100, len(data)) if data[at : at + len(piece[0])] == piece[0]]


@pytest.mark.parametrize("name", PIECES)
def test_a_stream_that_is_cut_says_so_within_a_piece_and_cannot_between_two(name):
    """There it is read as far as it goes: all that is shown is of the film, in its order."""
    data = FUZZ["videos"]()[name]
    whole, between = FUZZ["read"]("video", data), places(data, PIECES[name])
    assert not fault(data) and between
    assert all(fault(data[: at + more]) for at in between for more in (8, 20, 100) if at + more < len(data) - 50)
    silent = [at for at in between if not fault(data[:at])]
    assert len(silent) == len(between) or name == "ts with sound"  # whose sound names its lengths
    for at in silent[:: len(silent) // 6 + 1]:
        try:
            assert FUZZ["among"](FUZZ["read"]("video", data[:at]), whole)
        except Broken as error:
            assert "\n" not in str(error)


def test_sound_names_its_length_in_a_stream():
    data = FUZZ["videos"]()["ts with sound"]
    assert 0 < sum(not fault(data[:at]) for at in places(data, 188)) < len(data) // 188 / 2


@pytest.mark.parametrize("name", ["flv", "flv, h264", "mp4 in indexed fragments"])
def test_a_stream_that_names_its_length_is_refused_wherever_it_is_cut(name):
    data = FUZZ["videos"]()[name]
    index = data.index(b"sidx") + 100 if "mp4" in name else 400
    last = data.index(b"mfra") if "mp4" in name else len(data)  # which is behind all fragments
    assert not fault(data) and all(fault(data[:length]) for length in range(index, last - 4))


def test_a_fragment_without_its_data_is_cut():
    data = FUZZ["videos"]()["mp4 of a stream"]
    assert fault(data[: data.rindex(b"mdat") - 4]) and not fault(data[: data.rindex(b"moof") - 4])


def test_flash_without_its_length_is_read_up_to_its_last_tag():
    data = FUZZ["videos"]()["flv of a stream, h264"]
    silent = [length for length in range(1, len(data)) if not fault(data[:length])]
    assert len(silent) < 15  # its header, and a place behind each of its tags
    assert {data[length] for length in silent if length > 3} == {9}  # a tag of pictures


def test_a_long_avi_is_of_several_parts():
    data = FUZZ["videos"]()["avi"]
    more = data + b"RIFF" + struct.pack("<I", 104) + b"AVIX" + bytes(100)
    assert not fault(more) and fault(more[:-10]) and not fault(more + bytes(50))


@pytest.mark.parametrize(
    "name",
    [
        "mp4",
        "mov",
        "mkv",
        "webm",
        "webm of a stream",
        "avi",
        "ogv",
        "wmv",
        "ts",
        "ts of discs",
        "flv",
        "flv of a stream",
        "mpeg",
        "mp4 of a stream",
    ],
)
def test_padding_behind_a_video(name):
    assert not fault(FUZZ["videos"]()[name] + bytes(50))


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a\1\0\1\0\0\0\0" + b"\1" * 300_000 + b"\x3b",
        b"GIF89a\1\0\1\0\0\0\0" + b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0" * 300_000 + b"\x3b",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"abCd") * 300_000 + chunk(b"IEND"),
        b"\0\0\0\x18ftypisom" + bytes(12) + struct.pack(">I4s", 8, b"free") * 300_000,
        b"\x1aE\xdf\xa3\x80" + b"\xec\x80" * 300_000,
        (b"OggS" + bytes(23)) * 300_000,
        bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + (struct.pack("<Q", 24) + bytes(16)) * 300_000,
    ],
    ids=["gif, rubbish", "gif, frames", "png", "mp4", "matroska", "ogg", "asf"],
)
def test_files_of_too_many_pieces_are_not_walked_for_minutes(data):
    assert fault(data) == "not decodable: of more than 200000 pieces"
    refused(data, "of more than 200000 pieces")
    refused(data, "of more than 200000 pieces", media.footage)


def test_a_jpeg_of_thousands_of_scans_is_not_decoded():
    """Each of its scans of 50 bytes is a pass over all pixels."""
    held = io.BytesIO()
    Image.new("RGB", (64, 64)).save(held, "JPEG", progressive=True)
    data = held.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    assert not fault(data[:-2] + 80 * last + data[-2:]) and not fault(data + 200 * last)  # the second: behind its end
    refused(data[:-2] + 200 * last + data[-2:], "not decodable: of more than 100 pieces")


def test_pages_are_not_walked(monkeypatch):
    data = FUZZ["images"]()["tiff, pages"]
    seek, pages = TiffImagePlugin.TiffImageFile.seek, []
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "seek", lambda self, page: (pages.append(page), seek(self, page))[1])
    assert media.image(data, Limits()).shape == (3, 24, 20) and max(pages) == 1


@pytest.mark.parametrize("name", ["jpeg", "jpeg, progressive", "jpeg, turned", "mpo"])
def test_a_film_behind_a_picture_is_no_fault(name):
    """As phones write it; its bytes look like marks of a JPEG now and then."""
    data = FUZZ["images"]()[name] + 300 * b"\xff\xda\0\5" + FUZZ["videos"]()["mp4"]
    assert not fault(data) and torch.equal(media.image(data, Limits()), media.image(FUZZ["images"]()[name], Limits()))


def test_videos_of_too_many_frames(monkeypatch):
    monkeypatch.setattr("mmalign.media.videos.LENGTH", 3)
    refused(quarters(), "more than 3 frames", media.footage)
    monkeypatch.setattr("mmalign.media.videos.LENGTH", 4)
    assert media.footage(quarters(), Limits()).length == 4


def test_a_page_of_a_compression_that_nobody_knows():
    data = bytearray(FUZZ["images"]()["tiff, pages"])
    second = [at for at in range(len(data)) if data[at : at + 4] == b"\x03\x01\x03\x00"][1]
    data[second + 8 : second + 10] = struct.pack("<H", 34712)
    refused(bytes(data), "not decodable")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n", "no image that can be read"),
        (b"qoif" + struct.pack(">II", 1, 1) + b"\3\0" + bytes(20), "no image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "no image that can be read"),
        (b"GIF89a", "cut off"),
        (b"GIF89a\1\0\1\0\0\0\0\x3b", "not decodable|no image"),
        (b"P3\n1 1\n255\n1 2 3", "cut off"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", 65535), "not decodable|no image"),
    ],
)
def test_images_that_are_none(data, words, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("another program was started"))
    refused(data, words)


def silent():
    """A file with sound alone."""
    held = io.BytesIO()
    with av.open(held, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 8000, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)
    return held.getvalue()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda: FUZZ["videos"]()["mp4"].replace(b"avc1", b"zzzz"), "of a codec that FFmpeg does not know"),
        (lambda: silent(), "a video without frames"),
        (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "not decodable"),
        (lambda: b"ffconcat version 1.0\nfile '/etc/hostname'\n", "not decodable"),
        (lambda: FUZZ["images"]()["png"], "not decodable"),
        (lambda: b"RIFF\4\0\0\0AVI ", "not decodable|without frames"),
        (lambda: b"not a video at all", "not decodable"),
        (lambda: growing(), "frames of several sizes: 32 x 32, 64 x 48"),
        (lambda: [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))], "frames of several sizes: 4 x 4, 4 x 5"),
        (lambda: [Image.new("RGB", (4, 4)), b"no picture"], "no image that can be read"),
        (lambda: torch.zeros(2, 3, 0, 4), "takes an image"),
    ],
)
def test_videos_that_are_none(source, words):
    refused(source(), words, media.footage)


def test_a_frame_that_grows_is_seen_before_it_is_kept():
    refused(growing(), "64 x 48 pixels, takes at most 2000", media.footage, Limits(pixels=2000))


def cover_first(data: bytes) -> bytes:
    """An MP4 whose index has its notes, the cover among them, before its tracks."""
    at = data.index(b"moov") + 4
    end, boxes = at - 8 + struct.unpack_from(">I", data, at - 8)[0], []
    place = at
    while place < end:
        size = struct.unpack_from(">I", data, place)[0]
        boxes.append(data[place : place + size])
        place += size
    assert boxes[-1][4:8] == b"udta" and b"covr" in boxes[-1]
    return data[:at] + boxes[-1] + b"".join(boxes[:-1]) + data[end:]


def test_the_cover_is_not_the_video():
    """A still picture beside the film, as players show it in their lists."""
    held, cover = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (200, 200)).save(cover, "PNG")
    with av.open(io.BytesIO(quarters())) as source, av.open(held, "w", format="mp4") as file:
        still = file.add_stream("png", rate=1)
        still.width, still.height, still.pix_fmt = 200, 200, "rgb24"
        still.disposition = 0x400  # attached_pic
        film = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = film
                file.mux(packet)
        for packet in [*still.encode(av.VideoFrame.from_image(Image.new("RGB", (200, 200)))), *still.encode()]:
            file.mux(packet)
    clip = media.footage(cover_first(held.getvalue()), Limits(frames=2))
    assert clip.length == 4 and clip.frames.shape[2:] == (48, 64)


def test_paths_that_no_file_can_have(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("a" * 5000, "a\0b", str(tmp_path), tmp_path / "pipe", "\udc80"):
        refused(path, "no such file")
        assert media.Medium("image", path).key()[2] is None
    (tmp_path / "grown.png").write_bytes(bytes(200))
    refused(tmp_path / "grown.png", "200 bytes, takes at most 100", limits=Limits(bytes=100))


def test_pictures_inside_of_an_address():
    data = FUZZ["images"]()["png"]
    text = f"data:image/png;base64,{base64_of(data)}"
    assert torch.equal(media.image(text, Limits()), media.image(data, Limits())) and media.is_address(text)
    assert torch.equal(media.image({"path": text[:60] + "\n" + text[60:]}, Limits()), media.image(data, Limits()))
    for source, words in (
        ("data:image/png;base64,@@@@", "data:image/png;base64: not base64"),
        ("data:image/png,abc", r"data:image/png: takes data:TYPE;base64,DATA"),
        ("data:image/png;base64,", "no bytes"),
        ("data:;base64", "takes data:TYPE;base64,DATA"),
        (f"data:text/html;base64,{base64_of(b'<html>')}", "data:text/html;base64: no image"),
    ):
        refused(source, words)
    refused(text, "takes at most 100", limits=Limits(bytes=100))
    refused(f"data:image/png;base64,{base64_of(bytes(120))}", "120 bytes, takes at most 100", limits=Limits(bytes=100))


def base64_of(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_pixels_that_are_no_numbers_are_not_black():
    grey = Image.new("F", (2, 2), 0.5)
    grey.putpixel((1, 1), float("nan"))
    refused(grey, "pixels that are not finite")
    for odd in (torch.nan, torch.inf):
        refused(torch.tensor([0.5, odd]).expand(3, 2, 2), "pixels that are not finite")
        refused(torch.tensor([0.5, odd]).expand(4, 3, 2, 2), "pixels that are not finite", media.footage)
    assert media.image(Image.new("F", (2, 2), 0.5), Limits()).mean() == pytest.approx(0.5, abs=0.003)


@pytest.mark.parametrize(("kind", "count"), [("image", 700), ("video", 120)])
def test_a_few_of_the_fuzzed(kind, count):
    """All of them: ``python scripts/fuzz/media.py``."""
    wrong = [f"{one}: {fault}" for one in FUZZ["inputs"](kind, count, 1) if (fault := FUZZ["outcome"](one)[1])]
    assert wrong == []


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch):
    """With a reader that pads what was cut, and with one that raises."""
    read = FUZZ["outcome"].__globals__
    cut = next(one for one in FUZZ["inputs"]("image", 500, 1) if one.change == "cut")
    monkeypatch.setitem(read, "read", lambda kind, data: torch.zeros(3, 1, 1) if data == cut.data else torch.ones(3, 1, 1))
    read["_whole"].cache_clear()
    assert "was cut, and reads as" in FUZZ["outcome"](cut)[1]
    monkeypatch.setitem(read, "read", lambda kind, data: [][0])
    assert FUZZ["outcome"](cut) == ("IndexError", "IndexError: list index out of range")
    read["_whole"].cache_clear()
