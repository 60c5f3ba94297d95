"""CLIP models of the open_clip package: unit vectors of images, with a gradient, and of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.matching import message_of
from mmalign.rewards._models.clip import unit, warn_of_long
from mmalign.rewards._models.weights import device_of
from mmalign.rewards._shared.pictures import fitted, standard
from mmalign.types import UserError


@dataclass(frozen=True)
class OpenClip:
    """A model with its tokenizer and preprocessing. ``clamp``: whether resized images are clipped to 0..1, as 8-bit code does."""

    name: str
    model: Any
    tokenizer: Any
    size: int
    edge: Literal["shortest", "longest", "both"]
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
    name: str, model: str, weights: str, *, edge: Literal["shortest", "longest", "both"] | None = None, clamp: bool = True,
    antialias: bool = True, device: str | None = None,
) -> OpenClip:  # fmt: skip
    """A model by open_clip's names: ``model``, and ``weights``, a tag of it or a file.

    edge: how images are fitted; None: as open_clip's own preprocessing of that model.
    Errors: UserError where the package is missing or broken, or knows no such model or weights.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch raises RuntimeError
        why = f"needs the package open_clip, which cannot be imported ({message_of(error)})"
        raise UserError(f"{name}: {why}; pip install open_clip_torch timm, and a torchvision that fits this torch") from error
    if not model.startswith(("hf-hub:", "local-dir:")) and model not in open_clip.list_models():
        raise UserError(f"{name}.model: got {model!r}, takes a model of open_clip (open_clip.list_models()), hf-hub:ID or local-dir:FOLDER")
    try:
        net = open_clip.create_model(model, pretrained=None if ":" in model else weights, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model)
    except Exception as error:  # whatever open_clip raises for tags, files and folders that it does not know
        raise UserError(f"{name}.weights: got {weights!r} for {model}, which open_clip cannot load: {message_of(error)}") from error
    facts, place = open_clip.get_model_preprocess_cfg(net), device_of(device)
    size = facts["size"] if isinstance(facts["size"], int) else facts["size"][0]
    edges: dict[str, Literal["shortest", "longest", "both"]] = {"shortest": "shortest", "longest": "longest", "squash": "both"}
    fit = edge or edges[facts.get("resize_mode") or "shortest"]
    net = net.to(place).eval().requires_grad_(False)
    return OpenClip(name, net, tokenizer, size, fit, tuple(facts["mean"]), tuple(facts["std"]), clamp, antialias, place)
