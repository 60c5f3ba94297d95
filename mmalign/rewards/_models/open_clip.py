"""CLIP models of the open_clip package: unit vectors of images, with a gradient, and of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.media.open_clip import Edge, load
from mmalign.media.preprocessing import fitted, standard
from mmalign.rewards._models.clip import unit, warn_of_long
from mmalign.rewards._models.weights import device_of


@dataclass(frozen=True)
class OpenClip:
    """A model with its tokenizer and preprocessing. ``clamp``: whether resized images are clipped to 0..1, as 8-bit code does."""

    name: str
    model: Any
    tokenizer: Any
    size: int
    edge: Edge
    mean: tuple[float, ...]
    std: tuple[float, ...]
    clamp: bool
    antialias: bool
    device: torch.device

    def of_images(self, images: Tensor) -> Tensor:
        """``[n, 3, H, W]`` in 0..1 -> unit vectors ``[n, D]``."""
        small = fitted(images.to(self.device), self.size, edge=self.edge, antialias=self.antialias)
        return unit(self.model.encode_image(standard(small.clamp(0, 1) if self.clamp else small, self.mean, self.std)))

    @torch.no_grad()
    def of_prompts(self, prompts: list[str]) -> Tensor:
        """Unit vectors ``[n, D]``; each prompt is encoded once."""
        different = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(different).to(self.device)
        warn_of_long(self.name, tokens.shape[1], bool((tokens[:, -1] != 0).any()))
        return unit(self.model.encode_text(tokens))[[different.index(prompt) for prompt in prompts]]


def load_open_clip(
    name: str, model: str, weights: str, *, edge: Edge | None = None, clamp: bool = True, antialias: bool = True, device: str | None = None
) -> OpenClip:
    """A model by open_clip's names: ``model``, and ``weights``, a tag of it or a file.

    edge: how images are fitted; None: as open_clip's own preprocessing of that model.
    Errors: UserError where the package is missing or broken, or knows no such model or weights.
    """
    own, place = load(name, model, weights), device_of(device)
    net = own.net.to(place).eval().requires_grad_(False)
    return OpenClip(name, net, own.tokenizer, own.size, edge or own.edge, own.mean, own.std, clamp, antialias, place)
