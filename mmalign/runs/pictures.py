"""Samples of a run as pictures: grids of images, films of videos."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from mmalign.files import write_bytes
from mmalign.types import UserError

FRAME = 250  # milliseconds that a frame of a video is shown


FILM = 2**23  # pixels of all frames of a grid of videos


def write_png(path: Path, image: Tensor) -> Path:
    """``image [C, H, W]`` uint8 with C 1, 3 or 4, as a PNG; ``[F, C, H, W]`` as an animated one that runs for ever.

    Most programs that show images show the first frame of those; browsers run them.
    """
    from PIL import Image

    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3, 4):
        raise UserError(f"{path.name}: got an image of shape {list(image.shape)}, takes [1, 3 or 4, height, width]")
    arrays = image.reshape(-1, *image.shape[-3:]).permute(0, 2, 3, 1).cpu().numpy()
    first, *others = [Image.fromarray(array[..., 0] if array.shape[2] == 1 else array) for array in arrays]
    moving = {"save_all": True, "append_images": others, "duration": FRAME, "loop": 0} if others else {}
    buffer = io.BytesIO()
    first.save(buffer, format="PNG", optimize=True, **moving)
    return write_bytes(path, buffer.getvalue())


def grid(images: Tensor) -> Tensor:
    """Rows and columns of images as one: ``[rows, columns, C, H, W]`` in 0..1 -> ``[4, rows * (H + gap), columns * (W + gap)]`` uint8.

    Videos ``[rows, columns, F, C, H, W]`` become ``[F, 4, ...]``, all of their frames; together at most `FILM` pixels, beyond
    which they are scaled down.
    Red, green, blue and opacity; the gap right of and below each image is transparent, 1 pixel for each 32 of the height.
    Values outside 0..1 are clipped, and NaN becomes black.
    """
    if images.ndim == 6:
        smaller = min(1.0, (FILM / (images.numel() / images.shape[3])) ** 0.5)
        frames = [images[:, :, frame] for frame in range(images.shape[2])]
        return torch.stack([grid(frame if smaller == 1 else _resized(frame, smaller)) for frame in frames])
    if images.ndim != 5 or images.shape[2] not in (1, 3):
        raise UserError(f"samples: got images of shape {list(images.shape)}, takes [rows, columns, (frames,) 1 or 3, height, width]")
    rows, columns, _, height, width = images.shape
    gap = max(1, height // 32)
    pixels = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu()
    canvas = pixels.new_zeros(rows, columns, 4, height + gap, width + gap)
    canvas[:, :, :3, :height, :width] = pixels
    canvas[:, :, 3, :height, :width] = 255
    return canvas.permute(2, 0, 3, 1, 4).reshape(4, rows * (height + gap), columns * (width + gap))


def _resized(images: Tensor, factor: float) -> Tensor:
    """``[rows, columns, C, H, W]`` with sides times ``factor``, 1 pixel or more."""
    size = [max(1, int(side * factor)) for side in images.shape[-2:]]
    return torch.nn.functional.interpolate(images.flatten(0, 1).float(), size=size, mode="area").unflatten(0, images.shape[:2])
