"""CLIP models of the package open_clip as readers of a reward model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.arguments.ranges import Count, Seed
from mmalign.conversations import question
from mmalign.devices import default_device
from mmalign.media.open_clip import OpenClipNet, load
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora
from mmalign.types import EVERY, Rollout, UserError

__all__ = ["OpenClipReader", "open_clip"]

Features = Literal["image", "product", "both"]


def open_clip(
    architecture: str | dict[str, Any], *, weights: str | None = None, features: Features = "product", lora: Lora | None = None,
    rows_at_once: Count = 64, seed: Seed = 0, device: str | None = None,
) -> OpenClipReader:  # fmt: skip
    """What a CLIP model makes of an image and its prompt, for a reward model of images; differentiable in the images.

    Under the head ``linear`` with weights of 1, ``product`` is PickScore and HPSv2's own form, ``exp(logit_scale) cos(image, prompt)``; a
    head that is trained weighs the directions of the space that both are in. A video is the mean of its frames.

    Args:
        architecture: of ``open_clip.list_models()``, ``hf-hub:ID``, ``local-dir:FOLDER``, or a mapping of open_clip's words
            (``embed_dim``, ``vision_cfg``, ``text_cfg``).
        weights: a tag of it (``open_clip.list_pretrained()``), or a file; None: random ones, or those of ``hf-hub:`` and ``local-dir:``.
        features: ``product``, of the unit vectors of image and prompt, number by number, times ``exp(logit_scale)``; ``image``, its unit
            vector times the root of its width, whatever the prompt; ``both``, one after the other.
        lora: rank, alpha, targets (open_clip's linear layers: ``c_fc``, ``c_proj``, ...); None trains all of it.
        rows_at_once: images in one pass where nothing is trained.
        seed: of random weights.
        device: a GPU if there is one.

    Errors: UserError where the package is missing, and for a model, weights or targets that it does not know.
    """
    own = load("policy.of", architecture, weights, seed=seed, key="architecture")
    place = default_device() if device is None else torch.device(device)
    return OpenClipReader(own, features=features, lora=lora, rows_at_once=rows_at_once, device=place)


@dataclass(frozen=True)
class Seen:
    """pixels: ``[B, 3, h, w]`` as the model sees them, or ``[B, F, 3, h, w]``. tokens: ``[B, L]`` of the prompts."""

    pixels: Tensor
    tokens: Tensor

    def take(self, rows: Tensor) -> Seen:
        return Seen(self.pixels[rows], self.tokens[rows])

    @staticmethod
    def join(parts: Sequence[Seen]) -> Seen:
        return Seen(torch.cat([part.pixels for part in parts]), torch.cat([part.tokens for part in parts]))


class OpenClipReader:
    """See ``open_clip``; a ``readers.Reader``."""

    differentiable = True

    def __init__(self, own: OpenClipNet, *, features: Features, lora: Lora | None, rows_at_once: int, device: torch.device):
        self.own, self.kind, self.rows_at_once = own, features, rows_at_once
        self.model = own.net.eval().to(device)  # dropout is off: what is scored twice has to be scored the same
        self.sets = ParameterSets(self.model, lora=lora)
        with torch.enable_grad():
            some = self._features(self._shown(torch.zeros(1, 3, own.size, own.size)), own.tokenizer([""]))
            trained = self.sets.trained
            gradients = torch.autograd.grad(some.sum(), list(trained.values()), allow_unused=True)
        self.width = some.shape[1]
        self.sets.freeze([name for name, gradient in zip(trained, gradients, strict=True) if gradient is None])
        self._warned = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Nothing: any words can be read."""
        return {}

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """Pixels as the model sees them, and tokens. Errors: UserError for outputs that are no pictures."""
        own = [outputs[row] for row in range(len(prompts))[part]]
        if odd := [output for output in own if not isinstance(output, Tensor) or output.ndim not in (3, 4)]:
            got = list(odd[0].shape) if isinstance(odd[0], Tensor) else type(odd[0]).__name__
            raise UserError(f"policy.of: open_clip reads images [C, H, W] and videos [F, C, H, W], got {got}; of words, takes transformers")
        tokens = self.own.tokenizer([question(prompt) for prompt in prompts[part]])
        if self.kind != "image" and not self._warned and bool((tokens[:, -1] != 0).any()):
            self._warned = True
            warnings.warn(f"policy.of: reads the first {tokens.shape[1]} tokens of a prompt, and some have as many or more", stacklevel=3)
        pixels = torch.stack([self._shown(picture) for picture in own])
        nothing = torch.full((len(own), 1), torch.nan, dtype=torch.float64)
        return Rollout(list(prompts[part]), own, nothing, nothing.isnan(), group[part], held=Seen(pixels, tokens))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H]`` float32, differentiable with respect to the model's parameters and the outputs."""
        return self._features(rollout.held.pixels[rows], rollout.held.tokens[rows])

    def _shown(self, picture: Tensor) -> Tensor:
        """An image or the frames of a video as the model sees them, on its device."""
        colours = picture.to(self.device, torch.float32).expand(*picture.shape[:-3], 3, -1, -1)
        return self.own.pixels(colours.reshape(-1, *colours.shape[-3:])).view(*colours.shape[:-3], 3, self.own.size, self.own.size)

    def _features(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        frames = pixels if pixels.ndim == 5 else pixels.unsqueeze(1)
        images = functional.normalize(self.model.encode_image(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1), dim=-1)
        image = images * images.shape[1] ** 0.5
        if self.kind == "image":
            return image.float()
        words = functional.normalize(self.model.encode_text(tokens.to(self.device)), dim=-1)
        product = self.model.logit_scale.exp() * images * words
        return (product if self.kind == "product" else torch.cat([image, product], 1)).float()
