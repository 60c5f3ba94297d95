"""Images and videos from wherever they are, with limits that hold before anything is decoded, and one line of reason where it fails."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign import media
from mmalign.signatures import Record
from mmalign.types import UserError

Animated = Literal["refuse", "first"]
SHOWN = 120  # letters of a name in a message


class Broken(UserError):
    """A medium that cannot be used; one line says which and why. Readers of many put it aside and go on."""


@dataclass(frozen=True)
class Limits(Record):
    """What a file may cost: ``bytes`` of the file, ``pixels`` (width times height) of an image or of one frame.

    size: bring every image to ``(height, width)`` by scaling it to cover that and cutting the middle out; None leaves sizes alone.
    animated: of animated images, take the ``first`` frame (and say so), or ``refuse`` them. frames: of a video, spread evenly over its
    length. urls: whether addresses are read, too (``fetching.py``: https and public hosts only). seconds: for one address in all.
    """

    bytes: int = 64 * 2**20
    pixels: int = 64 * 10**6
    size: tuple[int, int] | None = None
    animated: Animated = "refuse"
    frames: int = 16
    urls: bool = False
    seconds: float = 20.0

    def __post_init__(self) -> None:
        for name in ("bytes", "pixels", "frames"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, takes 1 or more")


class Footage(NamedTuple):
    """Frames of a video. frames: ``[F, 3, H, W]`` uint8. places: their numbers among the ``length`` of the video. rate: a second, where
    it is known."""

    frames: Tensor
    places: list[int]
    length: int
    rate: float | None


def image(source: Any, limits: Limits) -> Tensor:
    """An image ``[3, H, W]`` float32 in 0..1; see ``picture``."""
    return _tensor(picture(source, limits)).float() / 255


def picture(source: Any, limits: Limits) -> Any:
    """An image as PIL has it, RGB, upright, decoded in full.

    source: bytes, a path, ``{"bytes": ..., "path": ...}`` as data sets store images, a PIL image, a tensor ``[3, H, W]`` in 0..1, or,
    where ``limits.urls`` allows it, an https address. The EXIF orientation is applied, transparent pixels are put on white, CMYK,
    palettes and grey become RGB, 16-bit grey is scaled. Raises Broken with the reason: too large (known from the header, before pixels
    are decoded), truncated, no image, animated.
    """
    from PIL import Image, UnidentifiedImageError
    from PIL import ImageFile as _  # noqa: F401 (registers LOAD_TRUNCATED_IMAGES, which stays off: a truncated image is broken)

    name = named(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = _opened(source, limits)
            width, height = opened.size
            if width * height > limits.pixels:
                raise Broken(f"{name}{width} x {height} pixels, takes at most {limits.pixels}")
            frames = getattr(opened, "n_frames", 1)  # only formats that may move have it
            if frames > 1 and limits.animated == "refuse":
                raise Broken(f"{name}animated, {frames} frames (animated: first takes the first one)")
            found = _sized(_rgb(opened), limits.size)
    except UnidentifiedImageError as error:
        raise Broken(f"{name}no image that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Broken(f"{name}too many pixels: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:  # what PIL raises for files that are cut or damaged
        raise Broken(f"{name}not decodable: {_one_line(error)}") from error
    if frames > 1:
        warnings.warn(f"{name}animated, the first of {frames} frames is taken", stacklevel=3)
    return found


def video(source: Any, limits: Limits) -> Tensor:
    """A video ``[F, 3, H, W]`` float32 in 0..1, ``limits.frames`` frames spread evenly over it; see ``footage``."""
    found = footage(source, limits).frames
    if len(found) < limits.frames:
        raise Broken(f"{named(source)}{len(found)} frames, takes at least {limits.frames}")
    return found.float() / 255


def footage(source: Any, limits: Limits) -> Footage:
    """At most ``limits.frames`` frames, spread evenly over a video.

    source: as in ``picture``, or frames: a tensor ``[F, 3, H, W]`` in 0..1, a list of images. Files are decoded by PyAV. Raises UserError
    where that is not installed, and Broken with the reason where the video cannot be used, one without frames included.
    """
    if not isinstance(source, (list, tuple, Tensor)):
        return _decoded(read_bytes(source, limits), limits, named(source))
    if isinstance(source, Tensor) and source.ndim != 4:
        raise Broken(f"got a tensor of shape {list(source.shape)}, takes a video [frames, 3, height, width] in 0..1")
    if not len(source):
        raise Broken("a video without frames")
    places = _spread(len(source), limits.frames)
    return Footage(torch.stack([_tensor(picture(source[place], limits)) for place in places]), places, len(source), None)


def read_bytes(source: Any, limits: Limits) -> bytes:
    """The bytes behind a source, at most ``limits.bytes`` of them. Raises Broken where there are none, or more."""
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    name = named(source)
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
    if is_address(source):
        if not limits.urls:
            raise Broken(f"{name}an address, which is not read (urls: true reads https from public hosts)")
        from mmalign.fetching import Refused, fetch

        try:
            return fetch(str(source), most=limits.bytes, seconds=limits.seconds)
        except Refused as error:
            raise Broken(str(error)) from error
    path = Path(source)
    if not path.is_file():
        raise Broken(f"no such file: {path}")
    if path.stat().st_size > limits.bytes:
        raise Broken(f"{name}{path.stat().st_size} bytes, takes at most {limits.bytes}")
    found = path.read_bytes()
    if not found:
        raise Broken(f"{name}an empty file")
    return found


def is_address(source: Any) -> bool:
    """Whether a source is a URL and not a path."""
    return isinstance(source, str) and "://" in source[:16]


def named(source: Any) -> str:
    """How messages begin that are about a source: its path or address and a colon, or nothing where it has no name."""
    if isinstance(source, dict):
        source = source.get("path")
    return f"{str(source)[:SHOWN]}: " if isinstance(source, (str, Path)) and str(source) else ""


def _opened(source: Any, limits: Limits) -> Any:
    """A source as PIL opens it; nothing is decoded yet."""
    from PIL import Image

    if isinstance(source, Tensor):
        if source.ndim != 3 or source.shape[0] not in (1, 3):
            raise Broken(f"got a tensor of shape {list(source.shape)}, takes an image [3, height, width] in 0..1")
        whole = source if source.dtype == torch.uint8 else (source.detach().float().clamp(0, 1) * 255).round().byte()
        return Image.fromarray(whole.expand(3, -1, -1).permute(1, 2, 0).cpu().contiguous().numpy())
    return source if isinstance(source, Image.Image) else Image.open(io.BytesIO(read_bytes(source, limits)))


def _decoded(data: bytes, limits: Limits, name: str) -> Footage:
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError("media: videos need the package av, which is not installed (pip install av)") from error
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > limits.pixels:
                raise Broken(f"{name}{stream.width} x {stream.height} pixels, takes at most {limits.pixels}")
            rate = getattr(stream, "average_rate", None)  # not every container says it
            count = sum(1 for _ in container.decode(stream))  # what a container says of its length need not be true
        places = _spread(count, limits.frames)
        with av.open(io.BytesIO(data), "r") as container:
            wanted = (frame for place, frame in enumerate(container.decode(container.streams.video[0])) if place in places)
            decoded = [_tensor(_sized(frame.to_image(), limits.size)) for frame in wanted]
    except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
        raise Broken(f"{name}not decodable: {_one_line(error)}") from error
    if not decoded:
        raise Broken(f"{name}a video without frames")
    return Footage(torch.stack(decoded), places, count, None if rate is None else float(rate))


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly from the first to the last."""
    return [round(place * (count - 1) / max(1, min(most, count) - 1)) for place in range(min(most, count))]


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

    return torch.from_numpy(numpy.array(opened, dtype=numpy.uint8)).permute(2, 0, 1).contiguous()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


KINDS = ("image", "video")


class Medium(NamedTuple):
    """An image or a video by reference. source: as ``media.picture`` and ``media.footage`` take it. change: see ``ablation.py``."""

    kind: str
    source: Any
    change: Any = None

    def key(self) -> tuple[Any, ...]:
        """What tells it from others: a file by its path, size and time, anything else by its bytes."""
        if isinstance(self.source, (str, Path)) and not media.is_address(self.source):
            path = Path(self.source)
            stat = path.stat() if path.is_file() else None
            return self.kind, str(path), stat and (stat.st_size, stat.st_mtime_ns), self.change
        return self.kind, str(self.source) if isinstance(self.source, str) else _hash(canonical_bytes(self.source)), self.change


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def canonical_bytes(value: Any) -> bytes:
    """What a medium is told apart by, whatever it came as."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return canonical_bytes(value.get("bytes") or str(value.get("path")).encode())
    if isinstance(value, (list, tuple)):
        return b"".join(canonical_bytes(part) for part in value)
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else f"{value.mode} {value.size}".encode() + value.tobytes()
