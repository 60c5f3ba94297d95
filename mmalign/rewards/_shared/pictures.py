"""Images as a person would save them."""

from __future__ import annotations

import torch
from torch import Tensor


def eight_bits(images: Tensor) -> Tensor:
    """``[n, 3, H, W]`` in 0..1 -> ``[n, H, W, 3]`` uint8 on the CPU, rounded; no gradient."""
    return (images.detach() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
