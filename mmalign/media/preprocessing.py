"""Preprocessing of image models in torch, so that a gradient goes through it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def fitted(images: Tensor, size: int, *, edge: Literal["shortest", "longest", "both"] = "shortest", antialias: bool = True) -> Tensor:
    """``[n, 3, H, W]`` -> ``[n, 3, size, size]``, bicubic with antialiasing, as PIL and torchvision do it but for rounding to 8 bits.

    edge: ``shortest`` becomes ``size`` and the middle is cut out; ``longest``, and the rest is black; ``both``, whatever the shape.
    antialias: without it a smaller image is a sample of the larger one's pixels (and the filter another one, as in torch).
    Bicubic filters overshoot: a few numbers come out below 0 and above 1, where 8-bit code clips them and float code does not.
    """
    height, width = images.shape[-2:]
    if edge == "both":
        return _resized(images, size, size, antialias)
    if edge == "longest":
        scale = size / max(height, width)
        small = _resized(images, round(height * scale), round(width * scale), antialias)
        free = size - small.shape[-2], size - small.shape[-1]
        return functional.pad(small, (free[1] // 2, free[1] - free[1] // 2, free[0] // 2, free[0] - free[0] // 2))
    short = min(height, width)
    large = _resized(images, int(size * height / short), int(size * width / short), antialias)
    top, left = (round((side - size) / 2) for side in large.shape[-2:])
    return large[..., top : top + size, left : left + size]


def _resized(images: Tensor, height: int, width: int, antialias: bool) -> Tensor:
    if tuple(images.shape[-2:]) == (height, width):
        return images
    return functional.interpolate(images, size=(height, width), mode="bicubic", antialias=antialias, align_corners=False)


def standard(images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> Tensor:
    """``(images - mean) / std`` of each channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
