"""Videos as frames, spread evenly over their length and upright, as a player shows them."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.media.images import fitted, picture, to_tensor
from mmalign.media.limits import Broken, Limits, decoding, named
from mmalign.media.sources import read_whole
from mmalign.types import UserError

# FFmpeg's names of what is opened. Its playlists (HLS, DASH, concat) would open other files and addresses in their turn.
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif")

LENGTH = 200_000  # frames of one file at most, over two hours at 25 a second: all of them are decoded
CLOCKS = (time.monotonic, time.process_time)
WIDEST = 8  # times as wide as high, or as high as wide, a pixel may be: those of films are 0.7 to 2.2


class Footage(NamedTuple):
    """Frames of a video.

    frames: ``[F, 3, H, W]`` uint8. places: their numbers in the video, from 0. length: how many frames the video has. rate: frames a
    second, where it is known.
    """

    frames: Tensor
    places: list[int]
    length: int
    rate: float | None


def video(source: Any, limits: Limits) -> Tensor:
    """A video ``[F, 3, H, W]`` float32 in 0..1, ``limits.frames`` frames spread evenly over it.

    source, limits: as in ``footage``.

    Errors: as ``footage``, and Broken for fewer frames.
    """
    frames = footage(source, limits).frames
    if len(frames) < limits.frames:
        raise Broken(f"{named(source)}{len(frames)} frames, takes at least {limits.frames}")
    return frames.float() / 255


def footage(source: Any, limits: Limits) -> Footage:
    """At most ``limits.frames`` frames, spread evenly over a video.

    source: as in ``picture``, or frames: a tensor ``[F, 3, H, W]`` in 0..1, a list of images. Files are MP4, MOV, Matroska, WebM, AVI,
    MPEG, FLV, ASF, Ogg or GIF, decoded by PyAV, made as wide as they are shown where their pixels are no squares, and turned and mirrored
    as their display matrix says. limits: what it may cost, and how many frames are kept.

    Errors: UserError where PyAV is not installed, and Broken with the reason where the video cannot be used: cut off, damaged, without
    frames, frames of several sizes.
    """
    if not isinstance(source, (list, tuple, Tensor)):
        return _decoded(read_whole(source, limits), limits, named(source))
    if isinstance(source, Tensor) and source.ndim != 4:
        raise Broken(f"got a tensor of shape {list(source.shape)}, takes a video [frames, 3, height, width] in 0..1")
    if not len(source):
        raise Broken("a video without frames")
    places = _spread(len(source), limits.frames)
    return Footage(_stacked([to_tensor(picture(source[place], limits)) for place in places], ""), places, len(source), None)


def _decoded(data: bytes, limits: Limits, name: str) -> Footage:
    until = tuple(clock() + limits.decoding for clock in CLOCKS)
    rates = [rate for _, rate, _ in _frames(data, limits, name, until)]  # counted: what a container says of its length need not be true
    if not rates:
        raise Broken(f"{name}a video without frames")
    places, frames = _spread(len(rates), limits.frames), []
    for place, (frame, _, width) in enumerate(_frames(data, limits, name, until)):
        if place in places:
            with decoding(name):
                frames.append(to_tensor(fitted(_upright(frame, width), limits.size)))
    return Footage(_stacked(frames, name), places, len(rates), rates[0])


def _frames(data: bytes, limits: Limits, name: str, until: tuple[float, ...]) -> Iterator[tuple[Any, float | None, int]]:
    """Every frame of the first stream of a video, as PyAV has it, how many there are in a second, and how wide it is shown.

    until: on each of ``CLOCKS``.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("media: videos need the package av, which is not installed (pip install av)") from error
    only = {"format_whitelist": ",".join(CONTAINERS)}
    with (
        decoding(name, av.error.FFmpegError),
        av.open(io.BytesIO(data), "r", container_options=only, metadata_errors="replace") as container,
    ):
        stream: Any = container.streams.best("video")  # not the picture of a cover
        if stream is None:
            raise Broken(f"{name}a video without frames")
        if stream.codec_context is None:
            raise Broken(f"{name}a video of a codec that FFmpeg does not know")
        limits.check_pixels(name, stream.width, stream.height)
        ratio = stream.sample_aspect_ratio or 1
        if not 1 / WIDEST <= ratio <= WIDEST:
            raise Broken(f"{name}pixels {float(ratio):.3g} times as wide as high, takes {1 / WIDEST:.3g} to {WIDEST}")
        count, rate = 0, None if not stream.average_rate else float(stream.average_rate)
        for packet in container.demux(stream):
            frames: list[Any] = packet.decode()
            if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
                raise Broken(f"{name}not decodable: cut off or damaged, a frame is not whole")
            count += len(frames)
            if count > LENGTH:
                raise Broken(f"{name}more than {LENGTH} frames")
            if all(clock() > end for clock, end in zip(CLOCKS, until, strict=True)):
                raise Broken(f"{name}decoding took more than {limits.decoding:g} s, after {count} frames")
            for frame in frames:
                width = max(1, round(frame.width * ratio))
                limits.check_pixels(name, max(width, frame.width), frame.height)  # it may grow on the way
                yield frame, rate, width


def _upright(frame: Any, width: int) -> Any:
    """A frame as a PIL image, so wide, and turned by quarters and mirrored as its display matrix says.

    The matrix is ``a b u, c d v, x y w`` in integers; the pixel at (x, y) is shown at (a x + c y, b x + d y), right and down.
    """
    from PIL.Image import Resampling, Transpose

    image, matrix = frame.to_image(), frame.side_data.get("DISPLAYMATRIX")
    if width != image.width:
        image = image.resize((width, image.height), Resampling.LANCZOS)
    if matrix is None:
        return image
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(b) + abs(c) > abs(a) + abs(d):
        image, a, d = image.transpose(Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(Transpose.FLIP_TOP_BOTTOM) if d < 0 else image


def _stacked(frames: list[Tensor], name: str) -> Tensor:
    sizes = sorted({(frame.shape[2], frame.shape[1]) for frame in frames})
    if len(sizes) > 1:
        raise Broken(f"{name}frames of several sizes: {', '.join(f'{width} x {height}' for width, height in sizes)}")
    return torch.stack(frames)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly from the first to the last."""
    return [round(place * (count - 1) / max(1, min(most, count) - 1)) for place in range(min(most, count))]
