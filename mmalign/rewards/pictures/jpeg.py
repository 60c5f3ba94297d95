"""How many bytes an image takes as JPEG: a reward without weights."""

from __future__ import annotations

import io
from typing import Annotated, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import within
from mmalign.rewards._shared.pictures import eight_bits
from mmalign.rewards._shared.scorer import Scorer, on_images
from mmalign.types import UserError

DIFFERENTIABLE = False


def jpeg(*, want: Literal["small", "large"] = "small", quality: Annotated[int, within(1, 95)] = 95) -> Scorer:
    """Reward in kilobytes (1000 bytes) of the image as JPEG: minus that for ``small`` (compressibility), that itself for ``large``.

    Needs images; prompts are not read. Not differentiable. Images are rounded to 8 bits; nothing else is done to them, so that the
    number grows with the size of the image. want: whether ``small`` files or ``large`` ones are better.
    quality: 1 to 95, as PIL has it. Other versions of libjpeg differ by a few bytes.

    Source: (in)compressibility in DDPO, https://arxiv.org/abs/2305.13301. flow_grpo divides ``small`` by 500.
    Errors: UserError for another ``want``, and a quality out of range.

    Examples:
        >>> flat, noise = torch.zeros(3, 64, 64), torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> plain, busy = mm.rewards.jpeg(want="small")(torch.stack([flat, noise]), ["grey", "noise"])
        >>> bool(busy < plain < 0)
        True
    """
    if want not in ("small", "large"):
        raise UserError(f"jpeg.want: got {want!r}, takes 'small' or 'large'")
    if not 1 <= quality <= 95:
        raise UserError(f"jpeg.quality: got {quality}, takes 1 to 95")
    sign = -1.0 if want == "small" else 1.0

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([sign * _bytes(image, quality) / 1000 for image in eight_bits(images)])

    bounds = {"high": 0.0} if want == "small" else {"low": 0.0}
    return on_images("jpeg", score, differentiable=DIFFERENTIABLE, rows_at_once=64, **bounds)


def _bytes(image: Tensor, quality: int) -> int:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(image.numpy()).save(written, format="JPEG", quality=quality)
    return written.tell()
