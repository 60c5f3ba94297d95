"""Samples of a run as pictures: grids of images and of videos, each sample as a file of its own, animated PNG, GIF and MP4."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.files import write_bytes, write_json
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


def write_mp4(path: Path, frames: Tensor) -> Path:
    """``frames [F, C, H, W]`` uint8 with C 1, 3 or 4 (opacity over white) as an MP4, four of them in a second; odd sides grow by a pixel.

    Errors: UserError where the package av is not installed.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(f"{path.name}: MP4 needs the package av, which is not installed (pip install av); takes .png") from error
    shown = opaque(frames)
    shown = torch.nn.functional.pad(shown.float(), (0, shown.shape[3] % 2, 0, shown.shape[2] % 2), mode="replicate").byte()
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        codec = next(name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available)
        stream: Any = container.add_stream(codec, rate=1000 // FRAME)
        stream.height, stream.width, stream.pix_fmt = shown.shape[2], shown.shape[3], "yuv420p"
        for frame in shown.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return write_bytes(path, buffer.getvalue())


def gif(frames: Tensor) -> bytes:
    """``frames [F, C, H, W]`` uint8 as an animated GIF, which trackers show moving."""
    from PIL import Image

    first, *others = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in opaque(frames)]
    buffer = io.BytesIO()
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=FRAME, loop=0)
    return buffer.getvalue()


def opaque(pixels: Tensor) -> Tensor:
    """``[..., C, H, W]`` uint8 with C 1, 3 or 4 as red, green and blue on the CPU; what is transparent becomes white."""
    pixels = pixels.detach().cpu()
    if pixels.shape[-3] == 4:
        return torch.where(pixels[..., 3:, :, :] > 0, pixels[..., :3, :, :], 255)
    return pixels.expand(*pixels.shape[:-3], 3, *pixels.shape[-2:])


def write_each(folder: Path, images: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> Path:
    """Every sample as a file, ``000_17.png`` of prompt 0 and seed 17, or ``.mp4`` of a video; which prompt it was is in ``prompts.json``.

    images: ``[prompts, seeds, C, H, W]`` in 0..1 (F, C, H, W: videos). Errors: UserError for a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"out: {folder} is there already, takes a folder that is not there yet, or a file that ends in .png or .mp4")
    pixels = (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu()
    write_json(folder / "prompts.json", {"prompts": list(prompts), "seeds": list(seeds)})
    for row, drawn in enumerate(pixels):
        for seed, sample in zip(seeds, drawn, strict=True):
            write = write_mp4 if sample.ndim == 4 else write_png
            write(folder / f"{row:03d}_{seed}.{'mp4' if sample.ndim == 4 else 'png'}", sample)
    return folder


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
