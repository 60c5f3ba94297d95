"""Images and videos of data sets into tensors, with limits that hold before anything is decoded, and a reason where it fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.types import UserError

__all__: list[str] = []  # nothing here is looked up by name

Animated = Literal["refuse", "first"]


class Broken(Exception):
    """A record that cannot be used; the message says why. Loaders put it aside and go on."""


class Limits(NamedTuple):
    """What a file may cost: ``bytes`` of the file, ``pixels`` (width times height) of an image or of one frame.

    size: bring every image to ``(height, width)`` by scaling it to cover that and cutting the middle out; None leaves sizes alone.
    animated: of animated images, take the ``first`` frame, or ``refuse`` them. frames: of a video, spread evenly over its length.
    """

    bytes: int = 64 * 2**20
    pixels: int = 64 * 10**6
    size: tuple[int, int] | None = None
    animated: Animated = "refuse"
    frames: int = 16


def image(source: Any, limits: Limits) -> Tensor:
    """An image ``[3, H, W]`` float32 in 0..1.

    source: bytes, a path, ``{"bytes": ..., "path": ...}`` as data sets store images, a PIL image, or a list of numbers. The
    EXIF orientation is applied, transparent pixels are put on white, CMYK, palettes and grey become RGB, 16-bit grey is scaled.
    Raises Broken with the reason: too large (known from the header, before pixels are decoded), truncated, no image, animated.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError
    from PIL import ImageFile as _  # noqa: F401 (registers LOAD_TRUNCATED_IMAGES, which stays off: a truncated image is broken)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = source if isinstance(source, Image.Image) else Image.open(io.BytesIO(read_bytes(source, limits)))
            width, height = opened.size
            if width * height > limits.pixels:
                raise Broken(f"{width} x {height} pixels, takes at most {limits.pixels}")
            frames = getattr(opened, "n_frames", 1)  # only formats that may move have it
            if frames > 1 and limits.animated == "refuse":
                raise Broken(f"animated, {frames} frames (animated: first takes the first one)")
            return _tensor(_sized(_rgb(opened), limits.size))
    except UnidentifiedImageError as error:
        raise Broken("no image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Broken(f"too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # what PIL raises for files that are cut or damaged
        raise Broken(f"not decodable: {' '.join(str(error).split()) or type(error).__name__}") from error


def read_bytes(source: Any, limits: Limits) -> bytes:
    """The bytes behind a source, at most ``limits.bytes`` of them. Raises Broken where there are none, or more."""
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if isinstance(source, (bytes, bytearray, memoryview)):
        found = bytes(source)
        if len(found) > limits.bytes:
            raise Broken(f"{len(found)} bytes, takes at most {limits.bytes}")
        if not found:
            raise Broken("no bytes")
        return found
    if not isinstance(source, (str, Path)) or not str(source):
        raise Broken(
            f"nothing there ({type(source).__name__})"
            if source is None or source == ""
            else f"got {type(source).__name__}, takes bytes or a path"
        )
    path = Path(source)
    if not path.is_file():
        raise Broken(f"no such file: {path}")
    if path.stat().st_size > limits.bytes:
        raise Broken(f"{path.stat().st_size} bytes, takes at most {limits.bytes}")
    found = path.read_bytes()
    if not found:
        raise Broken("an empty file")
    return found


def video(source: Any, limits: Limits) -> Tensor:
    """A video ``[F, 3, H, W]`` float32 in 0..1, ``limits.frames`` frames spread evenly over it.

    Decoded by PyAV. Raises UserError where that is not installed, and Broken with the reason where the file cannot be used.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("records: videos need the package av, which is not installed (pip install av)") from error
    try:
        with av.open(io.BytesIO(read_bytes(source, limits))) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > limits.pixels:
                raise Broken(f"{stream.width} x {stream.height} pixels, takes at most {limits.pixels}")
            decoded = [_tensor(_sized(frame.to_image(), limits.size)) for frame in container.decode(stream)]
    except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
        raise Broken(f"not decodable: {' '.join(str(error).split()) or type(error).__name__}") from error
    if len(decoded) < limits.frames:
        raise Broken(f"{len(decoded)} frames, takes at least {limits.frames}")
    return torch.stack([decoded[round(place * (len(decoded) - 1) / max(1, limits.frames - 1))] for place in range(limits.frames)])


def _rgb(opened: Any) -> Any:
    """The first frame as RGB, upright, decoded in full."""
    from PIL import Image, ImageOps

    opened.seek(0)
    opened.load()
    turned = ImageOps.exif_transpose(opened)
    if turned.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        import numpy

        values = numpy.asarray(turned, dtype=numpy.float64)
        scale = 255.0 / 65535.0 if turned.mode.startswith("I") else 255.0
        turned = Image.fromarray((values * scale).round().clip(0, 255).astype("uint8"))
    if turned.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in turned.info:
        layered = turned.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return turned.convert("RGB")


def _sized(opened: Any, size: tuple[int, int] | None) -> Any:
    """Scaled to cover ``(height, width)`` and cut in the middle."""
    from PIL import Image, ImageOps

    return opened if size is None else ImageOps.fit(opened, (size[1], size[0]), Image.Resampling.LANCZOS)


def _tensor(opened: Any) -> Tensor:
    import numpy

    return torch.from_numpy(numpy.array(opened, dtype=numpy.uint8)).permute(2, 0, 1).contiguous().float() / 255
