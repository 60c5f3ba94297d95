"""HPSv2: what people preferred, in images of text-to-image models."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.rewards._models.open_clip import load_open_clip
from mmalign.rewards._models.weights import weight_file
from mmalign.rewards._shared.scorer import Scorer, on_images

FILES = {"2.0": "xswu/HPSv2/HPS_v2_compressed.pt", "2.1": "xswu/HPSv2/HPS_v2.1_compressed.pt"}


def hps(
    *,
    version: Literal["2.0", "2.1"] = "2.1",
    weights: str | None = None,
    sha256: str | None = None,
    model: str = "ViT-H-14",
    antialias: bool = True,
    device: str | None = None,
    rows_at_once: Count = 32,
) -> Scorer:
    """Reward in -1..1, mostly 0.2 to 0.35: the cosine of image and prompt in a CLIP ViT-H/14 trained on people's choices.

    Needs images and prompts, and the package open_clip_torch (not hpsv2, which cannot live beside today's transformers).
    Differentiable in the images. Preprocessing as in hpsv2: the *longer* side to 224, bicubic, black around, normalised; there in
    float too, so nothing is clipped. (hpsv2 leaves antialiasing to torchvision's default, off in old versions; here it is on.)

    Args:
        version: which weights; hpsv2's own ``score`` has 2.0 by default, and its ``evaluate`` 2.1. They are on different scales.
        weights: a file, or ORGANISATION/REPOSITORY/FILE on the hub, in place of the published one.
        sha256: of that file; another one is refused.
        model: the architecture, in open_clip's words.
        antialias: hpsv2 leaves it to torchvision's default for tensors: off below version 0.17, as when it was published, on since.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    hpsv2 runs the model in half precision (autocast), here it is float32. Source: Human Preference Score v2, Wu et al. 2023,
    https://arxiv.org/abs/2306.09341; weights on the hub in xswu/HPSv2, checksums not known here.
    """
    path = weight_file("hps.weights", weights or FILES[version], sha256=sha256)
    clip = load_open_clip("hps", model, str(path), edge="longest", clamp=False, antialias=antialias, device=device)

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return (clip.of_images(images) * clip.of_prompts(prompts)).sum(-1)

    return on_images("hps", score, differentiable=True, rows_at_once=rows_at_once, low=-1.0, high=1.0)
