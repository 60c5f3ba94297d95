"""VideoReward: what people preferred in videos, as three scores: visual quality, motion quality, and fit to the text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Size
from mmalign.rewards._models.qwen_head import load_qwen_head, merged
from mmalign.rewards._models.weights import tensors, weight_file
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.videos import on_videos
from mmalign.types import UserError

PARTS = ("VQ", "MQ", "TA")
LEAST = 128 * 28 * 28


def video_reward(  # the published reward's own settings
    *, weights: str, config: str, instruction: str, base: str = "Qwen/Qwen2-VL-2B-Instruct", sha256: str | None = None,
    normalise: bool = True, stride: Count = 1, pixels: tuple[Size, Size] | None = None, apart: bool = False,
    dtype: str = "bfloat16", device: str | None = None, rows_at_once: Count = 4,
) -> Scorer:  # fmt: skip
    """Reward without bounds: the sum of ``VQ``, ``MQ`` and ``TA``, each less its mean and over its deviation on VideoReward's own data.

    A Qwen2-VL-2B reads frames and prompt, and a linear head its tokens ``<|VQ_reward|>``, ``<|MQ_reward|>`` and ``<|TA_reward|>``. Without
    ``normalise`` the three are on scales of their own, and a sum is mostly the largest one's. Needs videos and prompts. Differentiable in
    the videos. Preprocessing: every ``stride``-th frame, bicubic within ``pixels`` (least, most of a frame) to whole patches, normalised
    as CLIP's, in torch, without rounding to 8 bits; frames go in pairs.

    Args:
        weights: the model's file, or ORGANISATION/REPOSITORY/FILE on the hub; adapters in it are merged. sha256: of it.
        config: the model_config.json beside it: normalisation (``inference_config``), and the adapters' scale (``peft_lora_config``).
        instruction: a file with the model's wording around a prompt, ``{prompt}`` (or ``{text_prompt}``) and the three tokens in it, each
            once: its detailed template with special tokens, in prompt_template.py of KwaiVGI/VideoAlign. Not shipped here.
        normalise: each of the three less its mean and over its deviation.
        stride: the original takes 2 frames a second; a video of f frames a second has f / 2. pixels: by default from 128 * 28 * 28
            (Qwen's own least, as recalled) to max_frame_pixels of data_config in config.
        apart: answer with the three as parts in place of their sum. base, dtype, device: as of ``hpsv3``.

    Source: Improving Video Generation with Human Feedback, https://arxiv.org/abs/2501.13918; checksum of the weights not known here.
    Errors: UserError for files that cannot be read, and settings out of range.
    """
    facts = _facts(config)
    least, most = pixels or (LEAST, int((facts.get("data_config") or {}).get("max_frame_pixels") or 0))
    if stride < 1 or not 0 < least <= most:
        raise UserError(f"video_reward: got stride={stride}, pixels={(least, most)}, takes 1 or more, and (least, most) of a frame")
    path = weight_file("video_reward.weights", weights, sha256=sha256)
    lora = facts.get("peft_lora_config") or {}
    state = merged(
        "video_reward",
        tensors("video_reward.weights", path),
        alpha=float(lora.get("lora_alpha", 16)),
        stabilised=bool(lora.get("use_rslora", False)),
    )
    judge = load_qwen_head(
        "video_reward",
        state,
        base=base,
        tokens=[f"<|{part}_reward|>" for part in PARTS],
        instruction=instruction,
        dtype=dtype,
        device=device,
    )
    mean, std = (torch.tensor([facts["inference_config"][f"{part}_{what}"] for part in PARTS]) for what in ("mean", "std"))

    def score(videos: Tensor, prompts: list[str]) -> Any:
        rows = []
        for video, prompt in zip(videos, prompts, strict=True):
            numbers = judge.score(video[::stride], prompt, pixels=(least, most), moving=True)
            three = numbers[:, 0] if numbers.shape[1] == 1 else numbers.diagonal()  # a number for each token, or one of three for each
            rows.append((three - mean.to(three)) / std.to(three) if normalise else three)
        table = torch.stack(rows)
        return dict(zip(PARTS, table.T, strict=True)) if apart else table.sum(1)

    return on_videos("video_reward", score, differentiable=True, frames=1 + stride, rows_at_once=rows_at_once)


def _facts(config: str) -> Mapping[str, Any]:
    """What the model's settings say, with a mean and a deviation above 0 for each part. Errors: UserError for a file without them."""
    path = Path(config)
    if not path.is_file():
        raise UserError(f"video_reward.config: no such file: {config}")
    try:
        facts: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        statistics = facts["inference_config"]
        if all(
            float(statistics[f"{part}_std"]) > 0 and float(statistics[f"{part}_mean"]) == float(statistics[f"{part}_mean"])
            for part in PARTS
        ):
            return facts
    except (ValueError, KeyError, TypeError):
        pass  # said below
    raise UserError(f"video_reward.config: {config}: takes inference_config with VQ_mean, VQ_std, MQ_mean, MQ_std, TA_mean, TA_std")
