"""Images in 0..1 as the codes of a model's own codebook, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.policies.language.codes.layouts import Layout
from mmalign.policies.language.prompts.vision import Vision
from mmalign.types import UserError


class Pixels:
    """A codebook of images of one size. vision: whose processor says what its pixels are in 0..1, ``mean + std x``; None: half each.

    What is decoded may be outside of 0..1, and is clamped. A codebook keeps what it can: an image that is encoded and decoded is another
    one, and encoded again may have other codes.
    """

    def __init__(self, layout: Layout, vision: Vision | None, device: torch.device):
        self.layout, self.device = layout, device
        reader = None if vision is None else vision.processor.image_processor
        mean, std = (0.5, 0.5) if reader is None else (reader.image_mean, reader.image_std)
        self.mean, self.std = (torch.tensor(value, device=device).view(-1, 1, 1) for value in (mean, std))

    def fitting(self, image: Tensor) -> Tensor:
        """An image as it is given, in color where it is grey and the codebook's are not. Errors: UserError for one of another size."""
        channels, *sides = self.layout.shape
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = f"a tensor {list(image.shape)}" if isinstance(image, Tensor) else f"a {type(image).__name__}"
            raise UserError(f"image: got {got}, takes one as [channels, height, width] in 0..1")
        if list(image.shape[1:]) != sides or image.shape[0] not in (1, channels):
            raise UserError(f"image: got {list(image.shape)}, and this model makes {list(self.layout.shape)}; takes that size")
        return image.float().expand(channels, -1, -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """``[R, T]`` -> ``[R, C, H, W]`` float32 on the CPU."""
        return (self.layout.decode(codes.to(self.device)).float() * self.std + self.mean).clamp(0, 1).cpu()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """``[R, C, H, W]`` in 0..1 -> ``[R, T]`` on the CPU."""
        return self.layout.encode((images.to(self.device) - self.mean) / self.std).cpu()
