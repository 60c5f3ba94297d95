"""Teacher forcing: rows of which each code is drawn behind the true ones before it, of an image that the prompt holds (VA-pi)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.conversations import media_of, without
from mmalign.media import Limits, image
from mmalign.policies.language.codes.pixels import Pixels
from mmalign.types import UserError


class Lesson(NamedTuple):
    """A prompt without its image, and the image ``[C, H, W]``."""

    prompt: Any
    image: Tensor


def lesson_of(prompt: Any, number: int, pixels: Pixels) -> Lesson:
    """A prompt parted from the image that is to be made again. Files are brought to the codebook's size.

    Errors: UserError for a prompt with no image, or more than one medium, and for an image of another size.
    """
    media = [] if isinstance(prompt, str) else media_of(prompt)
    if len(media) != 1 or media[0].kind != "image":
        raise UserError(f"prompt {number}: got {len(media)} media, and policy.teacher_forcing makes one image again; takes prompts with it")
    source, (channels, height, width) = media[0].source, pixels.layout.shape
    read = source if isinstance(source, Tensor) and source.ndim == 3 else image(source, Limits(size=(height, width)))
    left = without(prompt, {0})
    plain = len(left) == 1 and left[0].get("role") == "user"
    return Lesson(_words(left[0]) if plain else left, pixels.fitting(read.mean(0, keepdim=True) if channels == 1 else read))


def _words(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content)


def noised(codes: Tensor, noise: float, places: Tensor, others: Tensor) -> Tensor:
    """Codes ``[R, T]`` of which a share ``noise`` is replaced. places: ``[R, T]`` in 0..1. others: ``[R, T]``, what takes their place."""
    return torch.where(places < noise, others, codes)
