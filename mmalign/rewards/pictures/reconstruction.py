"""How near an image is to the one that its prompt holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.conversations import media_of
from mmalign.media import Limits, image
from mmalign.types import UserError


def reconstruction() -> Callable[..., Tensor]:
    """Reward: minus the mean squared error over pixels and channels to the image in the prompt, which files are scaled and cut to.

    With ``image_tokens``' ``teacher_forcing`` it is the pixel reward of VA-pi (https://arxiv.org/abs/2512.19680), whose LPIPS is the
    reward ``lpips`` beside it. Differentiable.

    A prompt without an image has no reward: NaN. Errors: UserError for a prompt with several, and for an image of another size.

    Examples:
        >>> prompt = [{"role": "user", "content": [{"type": "image", "image": torch.full((3, 4, 4), 0.5)}]}]
        >>> reconstruction()(torch.stack([torch.full((3, 4, 4), 0.25), torch.ones(3, 4, 4)]), [prompt, prompt]).tolist()
        [-0.0625, -0.25]
    """

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        return -(outputs - shown("reconstruction", prompts, outputs)).square().flatten(1).mean(1)

    return reward


def shown(owner: str, prompts: list[Any], outputs: Tensor) -> Tensor:
    """The images that prompts hold, as ``outputs [B, C, H, W]`` are; NaN where there is none. Errors: UserError by ``owner``'s name."""
    return torch.stack([_image(owner, prompt, outputs.shape[1:]) for prompt in prompts]).to(outputs)


def _image(owner: str, prompt: Any, shape: Any) -> Tensor:
    media = [] if isinstance(prompt, str) else media_of(prompt)
    if not media:
        return torch.full(tuple(shape), torch.nan)
    if len(media) > 1 or media[0].kind != "image":
        raise UserError(f"{owner}: got a prompt with {len(media)} images or videos, takes one image in each")
    source = media[0].source
    read = source if isinstance(source, Tensor) and source.ndim == 3 else image(source, Limits(size=(int(shape[1]), int(shape[2]))))
    read = read.mean(0, keepdim=True) if shape[0] == 1 else read
    if read.shape[1:] != shape[1:] or read.shape[0] not in (1, shape[0]):
        raise UserError(f"{owner}: got an image {list(read.shape)} for an output {list(shape)}; takes one of its size")
    return read.expand(*shape)
