"""LAION's aesthetic predictor: how beautiful people find an image, whatever the prompt."""

from __future__ import annotations

from torch import Tensor, nn

from mmalign.arguments.ranges import Count
from mmalign.rewards._models.clip import load_clip
from mmalign.rewards._models.weights import filled, tensors, weight_file
from mmalign.rewards._shared.scorer import Scorer, on_images


def aesthetic(
    *,
    weights: str = "openai/clip-vit-large-patch14",
    head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
    sha256: str | None = None,
    device: str | None = None,
    rows_at_once: Count = 32,
) -> Scorer:
    """Reward of about 1 to 10, mostly 4 to 7: five linear layers on the unit vector of an image in CLIP ViT-L/14.

    Needs images; prompts are not read. Differentiable in the images (the layers have nothing between them, so it is linear in the
    unit vector). Preprocessing: CLIP's: bicubic to 224 on the shorter side, the middle cut out, normalised, in torch, without
    rounding to 8 bits.

    Args:
        weights: hub id or folder of the CLIP model.
        head: the file of the layers, or ORGANISATION/REPOSITORY/FILE on the hub: LAION's ``sac+logos+ava1-l14-linearMSE.pth``, of which
            the default is TRL's copy.
        sha256: of that file; another one is refused.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    Source: LAION's improved-aesthetic-predictor, as in DDPO, https://arxiv.org/abs/2305.13301; checksum of the file not known here.
    """
    path = weight_file("aesthetic.head", head, sha256=sha256)
    clip = load_clip("aesthetic", weights, device=device)
    state = {name.removeprefix("layers."): value for name, value in tensors("aesthetic.head", path).items()}
    layers = filled("aesthetic.head", linear_head(clip.model.config.projection_dim), state).to(clip.device)

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return layers(clip.of_images(images))[:, 0]

    return on_images("aesthetic", score, differentiable=True, rows_at_once=rows_at_once)


def linear_head(width: int) -> nn.Sequential:
    """The layers as published, dropout in between for the sake of their numbers: ``[n, width]`` -> ``[n, 1]``."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1),
        nn.Linear(64, 16), nn.Linear(16, 1),
    )  # fmt: skip
