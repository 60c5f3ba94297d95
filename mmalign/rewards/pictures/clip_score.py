"""CLIPScore: how well an image fits its prompt."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count, Positive
from mmalign.rewards._models.open_clip import load_open_clip
from mmalign.rewards._shared.scorer import Scorer, on_images


def clip_score(
    *, model: str = "ViT-L-14", weights: str = "openai", scale: Positive = 1.0, device: str | None = None, rows_at_once: Count = 32
) -> Scorer:
    """Reward in ``-scale..scale``: ``scale * cos(image, prompt)`` in a CLIP model of open_clip.

    Needs images and prompts, and the package open_clip_torch. Differentiable in the images. Preprocessing: that of the model in
    open_clip (bicubic to the shorter side, the middle cut out, normalised), in torch, without its rounding to 8 bits.

    Args:
        model, weights: in open_clip's words: a tag (``open_clip.list_pretrained()``) or a file, downloaded on first use. With
            ``model: hf-hub:ID`` or ``local-dir:FOLDER`` weights and architecture come from there, and ``weights`` is not read.
        scale: Hessel et al. have 2.5, and cut at 0 from below; torchmetrics 100, cut too. Here nothing is cut.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    Source: CLIPScore, Hessel et al. 2021, https://arxiv.org/abs/2104.08718; open_clip. Weights ``openai`` of ViT-L-14: SHA-256
    b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836 of the original file (it is in OpenAI's address of it); open_clip
    may take a converted copy, whose checksum is not known here.
    """
    clip = load_open_clip("clip_score", model, weights, device=device)

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return scale * (clip.of_images(images) * clip.of_prompts(prompts)).sum(-1)

    return on_images("clip_score", score, differentiable=True, rows_at_once=rows_at_once, low=-scale, high=scale)
