"""Whether what a video shows stays what it is: features of its frames against the first and the one before."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.rewards._models.clip import load_clip
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.videos import on_videos
from mmalign.rewards.pictures.subject_similarity import WEIGHTS, load_dino
from mmalign.types import UserError


def frame_consistency(
    *, features: Literal["dino", "clip"] = "dino", weights: str | None = None, device: str | None = None, rows_at_once: Count = 4
) -> Scorer:
    """Reward in 0..1: ``mean_t (max(0, cos(f_1, f_t)) + max(0, cos(f_{t-1}, f_t))) / 2`` over the frames after the first.

    VBench's subject consistency with ``dino``, its background consistency with ``clip``. A still picture has 1: combine it with
    ``motion``. Needs videos; prompts are not read. Differentiable. Preprocessing of frames as of ``subject_similarity``.

    features, weights: as of ``subject_similarity`` (VBench's are DINO ViT-B/16 and CLIP ViT-B/32). device: a GPU if there is one.
    rows_at_once: videos in one call of the model. Source: VBench, https://arxiv.org/abs/2311.17982; checksums not known here.
    Errors: UserError for weights that cannot be read.
    """
    if features not in WEIGHTS:
        raise UserError(f"frame_consistency.features: got {features!r}, takes dino or clip")
    name = weights or WEIGHTS[features]
    clip = features == "clip"
    of_images = load_clip("frame_consistency", name, device=device).of_images if clip else load_dino("frame_consistency", name, device)

    def score(videos: Tensor, prompts: list[str]) -> Tensor:
        seen = of_images(videos.flatten(0, 1)).unflatten(0, videos.shape[:2])
        first = (seen[:, :1] * seen[:, 1:]).sum(-1).clamp(min=0)
        before = (seen[:, :-1] * seen[:, 1:]).sum(-1).clamp(min=0)
        return ((first + before) / 2).mean(1)

    return on_videos("frame_consistency", score, differentiable=True, rows_at_once=rows_at_once, low=0.0, high=1.0)
