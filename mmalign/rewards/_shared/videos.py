"""What rewards on videos share: checks before anything expensive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def on_videos(
    name: str, score: Callable[[Tensor, list[str]], Any], *, differentiable: bool, frames: int = 2, rows_at_once: int = 4,
    low: float | None = None, high: float | None = None,
) -> Scorer:  # fmt: skip
    """A scorer of videos from ``score``: (``[n, F, 3, H, W]`` float32 in 0..1, n prompts) -> ``[n]`` or ``{part: [n]}``.

    frames: a video has to have at least so many. Grey videos are repeated over three channels. A video with a number that is not finite
    has no score: NaN.

    Errors: UserError, before ``score`` is asked, for outputs that are not such videos.
    """
    if rows_at_once < 1:
        raise UserError(f"{name}.rows_at_once: got {rows_at_once}, takes 1 or more")

    def reward(outputs: Any, prompts: list[str], **columns: Any) -> Any:
        videos, usable = _videos(name, outputs, prompts, frames)
        answers = [
            score(videos[start : start + rows_at_once], prompts[start : start + rows_at_once])
            for start in range(0, len(prompts), rows_at_once)
        ]

        def whole(parts: list[Tensor]) -> Tensor:
            scores = torch.cat(parts).to(videos.device)
            return torch.where(usable, scores, torch.full_like(scores, float("nan")))

        if isinstance(answers[0], dict):
            return {part: whole([one[part] for one in answers]) for part in answers[0]}
        return whole(answers)

    return Scorer(name, reward, differentiable=differentiable, low=low, high=high)


def _videos(name: str, outputs: Any, prompts: list[str], frames: int) -> tuple[Tensor, Tensor]:
    """Videos ``[B, F, 3, H, W]`` float32, those that are not finite black, and which rows are finite ``[B]``."""
    good = isinstance(outputs, Tensor) and outputs.ndim == 5 and outputs.shape[2] in (1, 3) and outputs.is_floating_point()
    if not good:
        got = f"{outputs.dtype} {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"{name}: got outputs {got}, takes videos [batch, frames, 3, height, width] of floats in 0..1")
    if len(outputs) != len(prompts) or not prompts:
        raise UserError(f"{name}: got {len(outputs)} videos for {len(prompts)} prompts, takes one for each of at least one")
    if outputs.shape[1] < frames:
        raise UserError(f"{name}: got videos of {outputs.shape[1]} frames, takes at least {frames}")
    videos = outputs.float().expand(-1, -1, 3, -1, -1)
    usable = videos.flatten(1).isfinite().all(1)
    videos = torch.where(usable[:, None, None, None, None], videos, 0.0)
    low, high = float(videos.detach().min()), float(videos.detach().max())
    if low < -1e-3 or high > 1 + 1e-3:  # a little rounding, not another range
        raise UserError(f"{name}: got numbers from {low:.4g} to {high:.4g}, takes videos in 0..1")
    return videos, usable
