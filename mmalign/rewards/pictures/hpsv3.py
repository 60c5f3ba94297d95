"""HPSv3: what people preferred, by a Qwen2-VL that says how sure it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Size
from mmalign.rewards._models.qwen_head import load_qwen_head
from mmalign.rewards._models.weights import tensors, weight_file
from mmalign.rewards._shared.scorer import Scorer, on_images

PIXELS = 256 * 28 * 28


def hpsv3(  # the published reward's own settings
    *, instruction: str, weights: str = "MizzenAI/HPSv3/HPSv3.safetensors", base: str = "Qwen/Qwen2-VL-7B-Instruct",
    sha256: str | None = None, pixels: Size = PIXELS, apart: bool = False, dtype: str = "bfloat16", device: str | None = None,
    rows_at_once: Count = 8,
) -> Scorer:  # fmt: skip
    """Reward without bounds, mostly -5 to 15: the first of two numbers that a head reads off a Qwen2-VL-7B at its token ``<|Reward|>``.

    Needs images and prompts. Differentiable in the images. Preprocessing: bicubic to ``pixels`` (as nearly as sides of whole patches let
    it), normalised as CLIP's, in torch, without rounding to 8 bits. The package hpsv3, which pins an old transformers, is not needed.

    Args:
        instruction: a file with the model's wording around a prompt, ``{prompt}`` (or ``{text_prompt}``) and ``<|Reward|>`` in it, each
            once: INSTRUCTION followed by prompt_with_special_token in hpsv3/dataset/data_collator_qwen.py of MizzenAI/HPSv3. It is part
            of the model, and is not shipped here: with another wording it scores, and scores otherwise.
        weights: a file, or ORGANISATION/REPOSITORY/FILE on the hub. sha256: of it; another one is refused.
        base: hub id or folder of the Qwen2-VL that gives configuration and tokenizer; of its weights nothing is read.
        pixels: of an image that the model sees; the published reward's by default.
        apart: answer with ``mu`` and ``sigma``, its second number as it stands, as parts; ``bayesian`` of the algebra uses both.
        dtype: ``bfloat16`` or ``float32`` of the model; the head is float32. device: a GPU if there is one. rows_at_once: images that
            are checked together; the model sees one at a time.

    Source: HPSv3, https://arxiv.org/abs/2508.03789; checksum of the weights not known here.

    Errors: UserError for files that cannot be read, and settings out of range.
    """
    path = weight_file("hpsv3.weights", weights, sha256=sha256)
    judge = load_qwen_head(
        "hpsv3", tensors("hpsv3.weights", path), base=base, tokens=["<|Reward|>"], instruction=instruction, dtype=dtype, device=device
    )

    def read(place: int) -> Any:
        def score(images: Tensor, prompts: list[str]) -> Tensor:
            rows = zip(images, prompts, strict=True)
            return torch.stack(
                [judge.score(image[None], prompt, pixels=(pixels, pixels), moving=False)[0, place] for image, prompt in rows]
            )

        return on_images("hpsv3", score, differentiable=True, rows_at_once=rows_at_once)

    if not apart:
        return read(0)  # type: ignore[no-any-return]
    parts = {"mu": read(0), "sigma": read(1)}
    return Scorer("hpsv3", lambda outputs, prompts, **columns: {name: of(outputs, prompts) for name, of in parts.items()}, True)
