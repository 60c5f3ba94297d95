"""CLIP models in the transformers format: unit vectors of images, with a gradient, and of prompts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.matching import reading, refuse_length
from mmalign.media.preprocessing import fitted, standard
from mmalign.rewards._models.weights import device_of, pretrained


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its tokenizer and preprocessing."""

    name: str
    model: Any
    tokenizer: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device

    def of_images(self, images: Tensor) -> Tensor:
        """``[n, 3, H, W]`` in 0..1 -> unit vectors ``[n, D]``."""
        pixels = standard(fitted(images.to(self.device), self.size).clamp(0, 1), self.mean, self.std)
        return unit(_features(self.model.get_image_features(pixel_values=pixels)))

    @torch.no_grad()
    def of_prompts(self, prompts: list[str]) -> Tensor:
        """Unit vectors ``[n, D]``; each prompt is encoded once."""
        different = list(dict.fromkeys(prompts))
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(different, padding=True, truncation=True, max_length=length, return_tensors="pt").to(self.device)
        warn_of_long(self.name, length, bool((tokens["attention_mask"].sum(1) >= length).any()))
        answer = self.model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return unit(_features(answer))[[different.index(prompt) for prompt in prompts]]


def load_clip(name: str, weights: str, *, processor: str | None = None, device: str | None = None) -> Clip:
    """A CLIP model from a hub id or folder, its tokenizer and preprocessing from ``processor`` (the same, by default).

    Errors: UserError where either is not there or is no CLIP.
    """
    from transformers import AutoTokenizer, CLIPModel, ImageProcessingMixin

    own = processor or weights
    model = pretrained(f"{name}.weights", CLIPModel, weights, "a CLIP model")
    with reading(f"{name}.processor", own, "a folder or a hub id with a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(own)
        refuse_length(f"{name}.processor", tokenizer)
        facts, _ = ImageProcessingMixin.get_image_processor_dict(own)
    place, size = device_of(device), facts["crop_size"]
    return Clip(
        name, model.to(place).eval().requires_grad_(False), tokenizer, size["height"] if isinstance(size, dict) else size,
        tuple(facts["image_mean"]), tuple(facts["image_std"]), place,
    )  # fmt: skip


def unit(vectors: Tensor) -> Tensor:
    """Vectors ``[n, D]`` of length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def warn_of_long(name: str, length: int, long: bool) -> None:
    """Says, once, that prompts are longer than the text encoder reads."""
    if long:
        warnings.warn(f"{name}: reads the first {length} tokens of a prompt, and some prompts here have as many or more", stacklevel=3)


def _features(answer: Any) -> Tensor:
    """transformers 5 wraps the projected features; before, they were the answer."""
    return answer if isinstance(answer, Tensor) else answer.pooler_output
