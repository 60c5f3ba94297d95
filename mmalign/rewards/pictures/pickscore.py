"""PickScore: what people picked on Pick-a-Pic."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.rewards._models.clip import load_clip
from mmalign.rewards._shared.scorer import Scorer, on_images


def pickscore(
    *,
    weights: str = "yuvalkirstain/PickScore_v1",
    processor: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    device: str | None = None,
    rows_at_once: Count = 32,
) -> Scorer:
    """Reward about 17 to 24: ``exp(logit_scale) * cos(image, prompt)`` in a CLIP ViT-H/14 trained on people's choices.

    Its exponential is a strength as in Bradley-Terry: a difference of 1 is a chance of .73 to be picked. Needs images and prompts.
    Differentiable in the images. Preprocessing: bicubic to 224 on the shorter side, the middle cut out, normalised, in torch,
    without the original's rounding to 8 bits. flow_grpo divides by 26: ``reward_weights: {pickscore: 0.03846}``.

    Args:
        weights: hub id or folder of the model. processor: of its tokenizer and preprocessing.
        device: a GPU if there is one. rows_at_once: images in one call of the model.

    Source: Pick-a-Pic, Kirstain et al. 2023, https://arxiv.org/abs/2305.01569; checksum of the weights not known here.
    """
    clip = load_clip("pickscore", weights, processor=processor, device=device)
    scale = float(clip.model.logit_scale.detach().exp())

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        return scale * (clip.of_images(images) * clip.of_prompts(prompts)).sum(-1)

    return on_images("pickscore", score, differentiable=True, rows_at_once=rows_at_once, low=-scale, high=scale)
