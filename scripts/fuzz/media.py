"""Damages images and videos, and sees that ``mmalign.media`` reads them or says Broken: no other error, no hang, nothing cut that passes.

python scripts/fuzz/media.py                       # 12,000 images and 1,000 videos
python scripts/fuzz/media.py --images 500 --seed 7
python scripts/fuzz/media.py --only video:41       # one input again, its bytes in a file beside

An input is made from the seed and its number alone. A file that was cut must be refused, or read as the whole file is (what was lost is
not of the picture). Streams that may end between any two of their pieces (``LOOSE``) may be read up to there: their frames are then some of
the whole file's, in their order (one that stands between two others may be stored behind them).
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import functools
import io
import random
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmalign import media

LIMITS = media.Limits(bytes=2**20, pixels=10**6, animated="first", frames=64)
LOOSE = {  # nothing in them says where they end; within a piece they say so
    "ts", "ts, h264", "ts with sound", "ts of discs", "flv of a stream", "flv of a stream, h264", "mp4 in fragments", "mp4 of a stream",
    "webm of a stream", "webm of a stream, vp9", "mpeg", "mpeg, long",
}  # fmt: skip
SLOW = 20.0  # seconds for one input, after which its traceback is printed and the script ends
PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _noise(seed: int, height: int = 24, width: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _stored(kind: str, mode: str = "RGB", more: int = 0, **options: object) -> bytes:
    held, image = io.BytesIO(), _noise(0) if mode == "RGB" else _noise(0).convert(mode)
    if more:
        options |= {"save_all": True, "append_images": [_noise(number).convert(mode) for number in range(1, more + 1)]}
    image.save(held, kind, **options)  # type: ignore[arg-type]
    return held.getvalue()


@functools.cache
def images() -> dict[str, bytes]:
    """Whole images by name: every format that is read, in several of its ways."""
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (24, 20), dtype=np.uint16))
    held = io.BytesIO()
    deep.save(held, "PNG")
    return {
        "png": _stored("PNG"), "png, palette": _stored("PNG", "P"), "png, 16 bits": held.getvalue(),
        "png, turned": _stored("PNG", exif=turned), "png, moving": _stored("PNG", more=2), "jpeg": _stored("JPEG", quality=95),
        "jpeg, progressive": _stored("JPEG", progressive=True), "jpeg, cmyk": _stored("JPEG", "CMYK"),
        "jpeg, restarts": _stored("JPEG", restart_marker_blocks=1), "png, alpha": _stored("PNG", "RGBA"),
        "webp, alpha": _stored("WEBP", "RGBA"), "tiff, cmyk": _stored("TIFF", "CMYK"), "avif, alpha": _stored("AVIF", "RGBA"),
        "gif, flat": _stored("GIF", interlace=0), "jpeg, turned": _stored("JPEG", exif=turned), "mpo": _stored("MPO", more=1),
        "gif": _stored("GIF"), "gif, moving": _stored("GIF", more=3), "webp": _stored("WEBP"),
        "webp, exact": _stored("WEBP", lossless=True), "webp, turned": _stored("WEBP", exif=turned),
        "webp, moving": _stored("WEBP", more=2), "avif": _stored("AVIF"), "avif, turned": _stored("AVIF", exif=turned),
        "avif, moving": _stored("AVIF", more=2), "bmp": _stored("BMP"), "bmp, palette": _stored("BMP", "P"), "ppm": _stored("PPM"),
        "pbm": _stored("PPM", "1"),
        "ppm, digits": b"P3\n6 4\n255\n" + b" ".join(b"%d" % (3 * number + 20) for number in range(72)) + b"\n", "tiff": _stored("TIFF"),
        "tiff, lzw": _stored("TIFF", compression="tiff_lzw"), "tiff, turned": _stored("TIFF", tiffinfo={0x0112: 6}),
        "tiff, deflate": _stored("TIFF", compression="tiff_adobe_deflate"), "tiff, jpeg": _stored("TIFF", compression="jpeg"),
        "tiff, pages": _stored("TIFF", more=2), "tiff, fax": _stored("TIFF", "1", compression="group4"), "jp2": _stored("JPEG2000"),
        "j2k": _stored("JPEG2000", no_jp2=True), "jp2, lossy": _stored("JPEG2000", quality_mode="rates", quality_layers=[20, 5]),
        "dds": _stored("DDS"), "ico": _stored("ICO", sizes=[(16, 16)]),
    }  # fmt: skip


def clip(container: str, codec: str, frames: int = 9, sound: str = "", **options: str) -> bytes:
    """A video whose frames are noise that moves, 64 x 48. sound: codec of a silent track beside it."""
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"  # a file, because moving the index to the front opens it again
        with av.open(str(path), "w", format=container, options=options) as file:
            stream: Any = file.add_stream(codec, rate=8)  # a video's, which the codec alone says
            stream.width, stream.height, stream.pix_fmt = 64, 48, PIXELS.get(codec, "yuv420p")
            stream.codec_context.thread_count = 1
            still = np.asarray(_noise(3, 48, 64))
            track: Any = file.add_stream(sound, rate=32000, layout="mono") if sound else None
            for number in range(frames):
                if track is not None:
                    file.mux(track.encode(_silence(number)))
                moved = np.ascontiguousarray(np.roll(still, 2 * number, 1))
                for packet in stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")):
                    file.mux(packet)
            for packet in [*stream.encode(), *(track.encode() if track is not None else [])]:
                file.mux(packet)
        return path.read_bytes()


def _silence(number: int) -> Any:
    """An eighth of a second, as long as a frame is."""
    import av

    frame = av.AudioFrame(format="s16", layout="mono", samples=4000)
    frame.sample_rate, frame.pts = 32000, 4000 * number
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame


def discs(stream: bytes) -> bytes:
    """MPEG-TS as discs have it: four bytes of time before each packet."""
    return b"".join(bytes(4) + stream[at : at + 188] for at in range(0, len(stream), 188))


@functools.cache
def videos() -> dict[str, bytes]:
    """Whole videos by name."""
    return {
        "mp4": clip("mp4", "libx264"), "mp4, index first": clip("mp4", "libx264", movflags="faststart"), "mp4, mpeg4": clip("mp4", "mpeg4"),
        "mov": clip("mov", "mjpeg", movflags="faststart"), "mp4 in fragments": clip("mp4", "libx264", movflags="frag_keyframe+empty_moov"),
        "mkv": clip("matroska", "libx264"), "webm": clip("webm", "libvpx"), "webm of a stream": clip("webm", "libvpx", live="1"),
        "avi": clip("avi", "mpeg4"), "ts": clip("mpegts", "mpeg2video"), "flv": clip("flv", "flv"), "gif": clip("gif", "gif"),
        "mkv, vp9": clip("matroska", "libvpx-vp9"), "wmv": clip("asf", "wmv2"), "mpeg": clip("mpeg", "mpeg2video"),
        "avi, mjpeg": clip("avi", "mjpeg"), "ogv": clip("ogg", "libvpx"), "ts, h264": clip("mpegts", "libx264"),
        "ts with sound": clip("mpegts", "mpeg2video", sound="mp2"), "ts of discs": discs(clip("mpegts", "mpeg2video")),
        "flv, h264": clip("flv", "libx264"), "flv of a stream": clip("flv", "flv", flvflags="no_duration_filesize"),
        "flv of a stream, h264": clip("flv", "libx264", flvflags="no_duration_filesize"),
        "mp4 in indexed fragments": clip("mp4", "libx264", movflags="dash+global_sidx+frag_every_frame"),
        "mp4 of a stream": clip("mp4", "libx264", movflags="frag_every_frame+empty_moov+default_base_moof+skip_trailer"),
        "webm of a stream, vp9": clip("webm", "libvpx-vp9", live="1", cluster_time_limit="200"),
        "mpeg, long": clip("mpeg", "mpeg2video", frames=40),
    }  # fmt: skip


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def _flipped(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _begun(data: bytearray, chance: random.Random) -> None:
    """As ``_flipped``, among the first bytes, where headers are."""
    for _ in range(chance.choice((1, 2, 4))):
        data[chance.randrange(min(len(data), 96))] = chance.randrange(256)


def _number(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((2, 4))
    at = chance.randrange(max(1, len(data) - size))
    value = chance.choice(EXTREMES) & (1 << 8 * size) - 1
    data[at : at + size] = struct.pack(chance.choice("<>") + ("H" if size == 2 else "I"), value)


def _span(data: bytearray, chance: random.Random) -> None:
    """A span is lost, empty, said twice, or noise."""
    at = chance.randrange(len(data))
    end = min(len(data), at + chance.choice((1, 4, 16, 100)))
    put = chance.choice((b"", bytes(end - at), 2 * bytes(data[at:end]), chance.randbytes(end - at)))
    data[at:end] = put


def _crossed(data: bytearray, chance: random.Random) -> None:
    """The rest is of another file."""
    at = chance.randrange(len(data))
    other = chance.choice((*images().values(),))
    data[at:] = other[at:]


CHANGES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "cut": _cut, "flipped": _flipped, "begun": _begun, "number": _number, "span": _span, "crossed": _crossed,
}  # fmt: skip


class Input:
    """One input: which file, how it was damaged, and the bytes."""

    def __init__(self, kind: str, number: int, seed: int):
        chance = random.Random(f"{kind} {number} {seed}")
        files = images() if kind == "image" else videos()
        self.kind, self.number = kind, number
        self.file = sorted(files)[number % len(files)]
        self.change = chance.choice((*CHANGES, "cut"))
        self.whole, data = files[self.file], bytearray(files[self.file])
        CHANGES[self.change](data, chance)
        self.data = bytes(data)

    def __str__(self) -> str:
        return f"{self.kind}:{self.number} ({self.file}, {self.change}, {len(self.data)} of {len(self.whole)} bytes)"


def read(kind: str, data: bytes) -> torch.Tensor:
    """What ``mmalign.media`` makes of bytes: ``[3, H, W]``, or ``[F, 3, H, W]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return media.image(data, LIMITS) if kind == "image" else media.footage(data, LIMITS).frames


@functools.cache
def _whole(kind: str, data: bytes) -> torch.Tensor:
    return read(kind, data)


def among(content: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether all frames are of a whole video, in its order."""
    frames = iter(whole)
    return all(any(torch.equal(frame, other) for other in frames) for frame in content)


def outcome(one: Input) -> tuple[str, str]:
    """How an input ended, and what is wrong with that; nothing where all is well."""
    try:
        content = read(one.kind, one.data)
    except media.Broken as error:
        return "Broken", "a message of several lines" if "\n" in str(error) else ""
    except Exception as error:  # what this script looks for
        return type(error).__name__, f"{type(error).__name__}: {error}"
    if one.change == "cut":
        expected = _whole(one.kind, one.whole)
        same = among(content, expected) if one.file in LOOSE else content.shape == expected.shape and torch.equal(content, expected)
        if not same:
            return "read", f"was cut, and reads as {list(content.shape)}, not as the whole file"
    return "read", ""


def inputs(kind: str, count: int, seed: int) -> Iterator[Input]:
    """``count`` inputs, one after the other."""
    return (Input(kind, number, seed) for number in range(count))


def main() -> int:
    """The exit code: 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--videos", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="image:NUMBER or video:NUMBER")
    settings = parser.parse_args()
    if settings.only:
        kind, _, number = settings.only.partition(":")
        one = Input(kind, int(number), settings.seed)
        path = Path(tempfile.gettempdir()) / f"fuzz_{kind}_{number}"
        path.write_bytes(one.data)
        print(one, *outcome(one), path, sep="\n")
        return 0
    ended: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wrong, slowest, began = 0, (0.0, ""), time.monotonic()
    for kind, count in (("image", settings.images), ("video", settings.videos)):
        for one in inputs(kind, count, settings.seed):
            faulthandler.dump_traceback_later(SLOW, exit=True)
            start = time.monotonic()
            end, fault = outcome(one)
            slowest = max(slowest, (time.monotonic() - start, str(one)))
            ended[f"{kind} {one.file}"][end] += 1
            wrong += bool(fault)
            if fault:
                print(f"{one}: {fault}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    for name, counts in sorted(ended.items()):
        print(f"{name:<28}{', '.join(f'{end} {count}' for end, count in sorted(counts.items()))}")
    spent = time.monotonic() - began
    print(f"{settings.images} images and {settings.videos} videos in {spent:.0f} s, slowest {slowest[0]:.1f} s: {slowest[1]}")
    print(f"{wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
