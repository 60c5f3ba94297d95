"""Images as tensors and as PIL's: upright, RGB, decoded in full, from formats that data sets hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmalign.media.limits import Broken, Limits, decoding, named
from mmalign.media.sources import read_whole

# What is opened, of the forty-odd that Pillow knows: EPS starts another program, and others are of no data set.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MOVING = ("AVIF", "GIF", "PNG", "WEBP")  # their frames are shown one after the other; those of MPO and TIFF are other pictures


def image(source: Any, limits: Limits) -> Tensor:
    """An image ``[3, H, W]`` float32 in 0..1.

    source, limits: as in ``picture``.

    Errors: Broken, as there.
    """
    return to_tensor(picture(source, limits)).float() / 255


def picture(source: Any, limits: Limits) -> Any:
    """An image as PIL has it, RGB, upright, decoded in full.

    source: bytes, a path, ``{"bytes": ..., "path": ...}`` as data sets store images, a ``data:`` URL, a PIL image, a tensor ``[3, H, W]``
    in 0..1, or, where ``limits.urls`` allows it, an https address. Files are AVIF, BMP, GIF, JPEG (with the further pictures that phones
    write into it, MPO), JPEG 2000, PNG, PPM, TIFF or WebP; of several pages or pictures it is the first. The EXIF orientation is applied,
    transparent pixels are put on white, CMYK, palettes and grey become RGB, 16-bit grey is scaled. limits: what it may cost.

    Errors: Broken with the reason: too large (known from the header, before pixels are decoded), cut off, damaged, no image, animated.
    """
    name = named(source)
    opened = _opened(source, limits, name)
    limits.check_pixels(name, *opened.size)
    with _pillow(name):
        frames = _frames(opened)
    if frames > 1 and opened.format in MOVING and limits.animated == "refuse":
        raise Broken(f"{name}animated, {frames} frames (animated: first takes the first one)")
    with _pillow(name):
        decoded = fitted(_rgb(opened), limits.size)
    if frames > 1 and opened.format in MOVING:
        warnings.warn(f"{name}animated, the first of {frames} frames is taken", stacklevel=3)
    elif frames > 1 and opened.format == "TIFF":
        warnings.warn(f"{name}the first of several pages is taken", stacklevel=3)
    return decoded


def address(source: Any) -> str:
    """An image as a ``data:`` URL of a PNG, so that records, logs and messages can hold it.

    source: a PIL image, a tensor ``[1 or 3, H, W]`` in 0..1, or bytes of a file.

    Errors: Broken, as ``picture``, within its default limits.
    """
    import base64

    buffer = io.BytesIO()
    picture(source, Limits()).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def fitted(opened: Any, size: tuple[int, int] | None) -> Any:
    """A PIL image scaled to cover ``(height, width)`` and cut in the middle; as it is for None."""
    from PIL import Image, ImageOps

    return opened if size is None else ImageOps.fit(opened, (size[1], size[0]), Image.Resampling.LANCZOS)


def to_tensor(opened: Any) -> Tensor:
    """A PIL image in RGB as ``[3, H, W]`` uint8."""
    import numpy

    return torch.from_numpy(numpy.array(opened, dtype=numpy.uint8)).permute(2, 0, 1).contiguous()


@contextmanager
def _pillow(name: str) -> Iterator[None]:
    """``decoding`` around calls of Pillow, with its own errors beside."""
    from PIL import Image, UnidentifiedImageError

    with decoding(name), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnidentifiedImageError as error:
            raise Broken(f"{name}no image that can be read, takes {', '.join(FORMATS)}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise Broken(f"{name}too many pixels: {error}") from error


def _opened(source: Any, limits: Limits, name: str) -> Any:
    """A source as PIL opens it; nothing is decoded yet."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Tensor):
        return _of_tensor(source)
    data = read_whole(source, limits)
    Image.init()  # fills OPEN; a Pillow of another build may lack AVIF or JPEG 2000
    with _pillow(name):
        return Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _of_tensor(source: Tensor) -> Any:
    from PIL import Image

    if source.ndim != 3 or source.shape[0] not in (1, 3) or not source.numel():
        raise Broken(f"got a tensor of shape {list(source.shape)}, takes an image [3, height, width] in 0..1")
    if source.is_floating_point() and not source.isfinite().all():
        raise Broken("got a tensor with pixels that are not finite, takes numbers in 0..1")
    whole = source if source.dtype == torch.uint8 else (source.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(whole.expand(3, -1, -1).permute(1, 2, 0).cpu().contiguous().numpy())


def _frames(opened: Any) -> int:
    """How many frames or pages an image has; 2 for several pages of a TIFF, which may have millions, and each costs a while."""
    if opened.format != "TIFF":
        return getattr(opened, "n_frames", 1)  # only formats that may have several have it
    if not opened.is_animated:
        return 1
    opened.seek(1)
    return 2


def _rgb(opened: Any) -> Any:
    """The first frame as RGB, upright, decoded in full."""
    from PIL import Image, ImageOps

    opened.seek(0)
    opened.load()
    turned = ImageOps.exif_transpose(opened)
    if turned.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        turned = _eight_bits(turned)
    if turned.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in turned.info:
        layered = turned.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
    return turned.convert("RGB")


def _eight_bits(deep: Any) -> Any:
    """Grey of 16 bits, or of floats in 0..1, as grey of 8 bits."""
    import numpy
    from PIL import Image

    values = numpy.asarray(deep, dtype=numpy.float64)
    if not numpy.isfinite(values).all():
        raise ValueError("pixels that are not finite")
    scale = 255.0 / 65535.0 if deep.mode.startswith("I") else 255.0
    return Image.fromarray((values * scale).round().clip(0, 255).astype("uint8"))
