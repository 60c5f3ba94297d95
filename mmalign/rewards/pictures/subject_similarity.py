"""How much an image looks like a subject's reference images: DINO or CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count
from mmalign.matching import reading
from mmalign.media.preprocessing import fitted, standard
from mmalign.rewards._models.clip import load_clip, unit
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.pictures_in import pictures
from mmalign.rewards._shared.scorer import Scorer, on_images
from mmalign.types import UserError

WEIGHTS = {"dino": "facebook/dino-vits16", "clip": "openai/clip-vit-base-patch32"}


def subject_similarity(
    *, features: Literal["dino", "clip"] = "dino", weights: str | None = None,
    column: Column = "references", device: str | None = None, rows_at_once: Count = 32,
) -> Scorer:  # fmt: skip
    """Reward in -1..1: the mean cosine of an image and its subject's reference images; DINO-I or CLIP-I.

    DINO tells one dog from another, CLIP mostly dogs from cats. Neither knows background from subject: cut the references to it.
    With ``clip_score`` under ``combine: {use: harmonic}`` it is the lambda-harmonic reward.

    Needs images; of prompts it reads nothing. Differentiable in the images. Preprocessing: bicubic to the model's size on the shorter side
    (for DINO to 256/224 of it, as DreamBooth's evaluation does), the middle cut out, normalised, without rounding to 8 bits.

    Args:
        column: of the prompts, that holds a picture of each one's subject, or a list of them: paths or tensors.
        features: ``dino`` takes the class token of a ViT, ``clip`` the projected image. weights: hub id or folder of a model of that
            kind; DINO ViT-S/16 and CLIP ViT-B/32, as DreamBooth has them, by default.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    Source: DreamBooth's DINO-I and CLIP-I, https://arxiv.org/abs/2208.12242; checksums of the weights not known here.

    Errors: UserError for weights that cannot be read, and prompts without that column.
    """
    if features not in WEIGHTS:
        raise UserError(f"subject_similarity.features: got {features!r}, takes dino or clip")
    name = weights or WEIGHTS[features]
    of_images = (
        load_dino("subject_similarity", name, device)
        if features == "dino"
        else load_clip("subject_similarity", name, device=device).of_images
    )
    find = pictures("subject_similarity", column)

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        with torch.no_grad():
            known = [torch.cat([of_images(picture[None].float()) for picture in some]) for some in find(prompts, columns)]
        rows = iter(known)

        def score(images: Tensor, some: list[str]) -> Tensor:
            return torch.stack([(next(rows) @ vector).mean() for vector in of_images(images)])

        return on_images("subject_similarity", score, differentiable=True, rows_at_once=rows_at_once)(outputs, prompts)  # type: ignore[no-any-return]

    return Scorer("subject_similarity", reward, differentiable=True, low=-1.0, high=1.0, reads=frozenset({column}))


def load_dino(key: str, weights: str, device: str | None) -> Callable[[Tensor], Tensor]:
    """Unit vectors of the class token of a ViT in the transformers format."""
    from transformers import AutoModel, ImageProcessingMixin

    model = pretrained(f"{key}.weights", AutoModel, weights, "a ViT", optional=("pooler.",))
    with reading(f"{key}.weights", weights, "a folder or a hub id of a ViT"):
        facts, _ = ImageProcessingMixin.get_image_processor_dict(weights)
    place = device_of(device)
    model = model.to(place).eval().requires_grad_(False)
    side = int(model.config.image_size)
    first = round(side * 256 / 224)
    mean, std = tuple(facts["image_mean"]), tuple(facts["image_std"])

    def of_images(images: Tensor) -> Tensor:
        small = fitted(images.to(place), first).clamp(0, 1)
        edge = (first - side) // 2
        pixels = standard(small[..., edge : edge + side, edge : edge + side], mean, std)
        return unit(model(pixel_values=pixels).last_hidden_state[:, 0])

    return of_images
