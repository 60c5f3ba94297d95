"""What is sent to a server of rewards and comes back, as JSON: tensors as safetensors, images as PNG, both in base64. Never pickle.

A question is ``{reward, prompts, outputs, columns, step, alone, seconds}``, an answer ``{reward, weights, scores: {part: [B]}, reasons:
{row: why}}``, where a score is a number, a list of ``(start, end, score)`` of the parts of a text, or null. What JSON does not know is a
mapping with one key: ``{"$tensor": ...}``, ``{"$images": [...]}`` (a tensor ``[B, C, H, W]`` in 8 bits), ``{"$videos": [[...]]}``,
``{"$png": ...}`` (a picture of Pillow's), ``{"$bytes": ...}`` (a file). Names of files are not followed on the server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.types import UserError

PROTOCOL = 1
DEEPEST = 32  # lists and mappings inside each other
Pixels = Literal["exact", "png"]


def packed(value: Any, pixels: Pixels = "exact") -> Any:
    """A value as JSON has it.

    value: a string, a number, None, a tensor, a picture of Pillow's, bytes, lists and mappings of these. pixels: ``png`` sends a tensor of
    floats that has the shape of images or videos in 8 bits, a quarter or less of its size; ``exact`` sends every bit.

    Errors: UserError for anything else.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$tensor": _safetensors(torch.tensor(value, dtype=torch.float64))}
    if isinstance(value, Tensor):
        return _packed_tensor(value.detach().cpu(), pixels)
    if isinstance(value, (bytes, bytearray)):
        return {"$bytes": _base64(bytes(value))}
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str) or key.startswith("$")]:
            raise UserError(f"got a mapping with the key {odd[0]!r}, takes strings that do not begin with $")
        return {key: packed(item, pixels) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [packed(item, pixels) for item in value]
    return _packed_picture(value)


def packed_prompt(prompt: Any) -> Any:
    """A prompt as JSON; images and videos of a conversation that are files go as their bytes, since a server does not open files by name.

    Errors: UserError for a file that cannot be read.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        kind, path = str(prompt.get("type")), prompt.get("path")
        if kind in ("image", "video") and isinstance(path or prompt.get(kind), (str, Path)):
            rest = {key: packed(value) for key, value in prompt.items() if key not in ("path", kind)}
            return {**rest, kind: packed(_file(path or prompt[kind]))}
        return {str(key): packed_prompt(value) for key, value in prompt.items()}
    return [packed_prompt(item) for item in prompt] if isinstance(prompt, (list, tuple)) else packed(prompt)


def unpacked(value: Any, *, pixels: int, depth: int = 0) -> Any:
    """``packed`` undone. pixels: of one picture at most, known before it is decoded. Errors: UserError for what is no such value."""
    if depth > DEEPEST:
        raise UserError(f"got lists and mappings more than {DEEPEST} deep")
    if isinstance(value, list):
        return [unpacked(item, pixels=pixels, depth=depth + 1) for item in value]
    if not isinstance(value, Mapping):
        return value
    special = next((key for key in value if key.startswith("$")), None)
    if special is None:
        return {key: unpacked(item, pixels=pixels, depth=depth + 1) for key, item in value.items()}
    if len(value) != 1 or special not in READERS:
        raise UserError(f"got a mapping with {', '.join(value)}, takes one of {', '.join(READERS)} alone")
    return READERS[special](value[special], pixels)


def content_hash(value: Any) -> str:
    """What a value that was ``packed`` is told apart by."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


# ---- writing


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _safetensors(value: Tensor) -> str:
    from safetensors.torch import save

    return _base64(save({"": value.contiguous()}))


def _packed_tensor(value: Tensor, pixels: Pixels) -> dict[str, Any]:
    if pixels == "png" and value.is_floating_point() and value.ndim in (4, 5) and value.shape[-3] in (1, 3):
        if not bool(value.isfinite().all()) or float(value.min()) < -1e-3 or float(value.max()) > 1 + 1e-3:
            raise UserError("got pixels outside of 0..1, takes images and videos in 0..1, or pixels: exact")
        if value.ndim == 4:
            return {"$images": [_png(image) for image in value]}
        return {"$videos": [[_png(frame) for frame in video] for video in value]}
    return {"$tensor": _safetensors(value)}


def _png(image: Tensor) -> str:
    from PIL import Image

    whole = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return _packed_picture(Image.fromarray(whole[..., 0] if whole.shape[-1] == 1 else whole))["$png"]


def _packed_picture(picture: Any) -> dict[str, str]:
    from PIL import Image

    if not isinstance(picture, Image.Image) or picture.mode not in ("L", "LA", "RGB", "RGBA"):
        kind = f"a picture in mode {picture.mode}" if isinstance(picture, Image.Image) else type(picture).__name__
        raise UserError(f"got {kind}, takes texts, numbers, tensors, bytes, pictures (L, RGB, RGBA), and lists and mappings of these")
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return {"$png": _base64(written.getvalue())}


def _file(source: Any) -> bytes:
    from mmalign.media import Limits, read_bytes

    return read_bytes(source, Limits())


# ---- reading


def _bytes(text: Any, pixels: int = 0) -> bytes:
    if not isinstance(text, str):
        raise UserError(f"got {type(text).__name__}, takes base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"got what is no base64: {error}") from error


def _tensor(text: Any, pixels: int) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(_bytes(text))
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"got what is no safetensors: {' '.join(str(error).split())[:120]}") from error
    if list(tensors) != [""]:
        raise UserError(f"got safetensors with {len(tensors)} tensors, takes one without a name")
    return tensors[""]


def _picture(text: Any, pixels: int) -> Any:
    from PIL import Image

    from mmalign.media import Limits
    from mmalign.media.limits import decoding

    with decoding("a picture: ", Image.UnidentifiedImageError, Image.DecompressionBombError):
        picture = Image.open(io.BytesIO(_bytes(text)), formats=["PNG"])
    Limits(pixels=pixels).check_pixels("a picture: ", *picture.size)
    with decoding("a picture: ", Image.UnidentifiedImageError):
        picture.load()
    return picture


def _images(texts: Any, pixels: int) -> Tensor:
    import numpy

    pictures = [_picture(text, pixels) for text in _list(texts)]
    if len(shapes := {(picture.size, picture.mode) for picture in pictures}) != 1 or pictures[0].mode not in ("L", "RGB"):
        raise UserError(f"got images of {len(shapes)} sizes and kinds, takes one, grey or RGB")
    whole = torch.from_numpy(numpy.stack([numpy.array(picture) for picture in pictures])).float() / 255
    return whole[:, None] if whole.ndim == 3 else whole.permute(0, 3, 1, 2).contiguous()


def _videos(lists: Any, pixels: int) -> Tensor:
    videos = [_images(texts, pixels) for texts in _list(lists)]
    if len(shapes := {tuple(video.shape) for video in videos}) != 1:
        raise UserError(f"got videos of {len(shapes)} shapes, takes one")
    return torch.stack(videos)


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"got {type(value).__name__}, takes a list of pictures, at least one")
    return value


READERS: dict[str, Callable[[Any, int], Any]] = {
    "$tensor": _tensor,
    "$images": _images,
    "$videos": _videos,
    "$png": _picture,
    "$bytes": _bytes,
}
