"""A reward for videos from one for images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from mmalign.arguments.facts import Differentiable, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def frames(*, of: Callable[..., Any], stride: Count = 1) -> Scorer:
    """Reward of a video: the mean over every ``stride``-th frame, the first included, of an image reward; in that reward's range.

    stride: from one frame that is scored to the next. of: ``(images [n, C, H, W], prompts) -> [n]``, or ``{part: [n]}``; a frame without a
    score (NaN) leaves its video without one. It sees one frame at a time: movement, and whether frames fit together, count for nothing.
    Differentiable where ``of`` is. Needs videos ``[B, F, C, H, W]`` and what ``of`` needs; no weights and no preprocessing of its own.
    Source: ours; flow_grpo's OCR of videos reads every 4th frame.

    Errors: UserError for a stride below 1.
    """
    if stride < 1:
        raise UserError(f"frames.stride: got {stride}, takes 1 or more")
    if not callable(of) or of_latents(of):
        raise UserError(f"frames.of: got {type(of).__name__}, takes a reward of images")

    def score(outputs: Any, prompts: list[str], **columns: Any) -> Any:
        if not isinstance(outputs, Tensor) or outputs.ndim != 5 or len(outputs) != len(prompts):
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UserError(f"frames: got outputs {got} for {len(prompts)} prompts, takes videos [batch, frames, channels, height, width]")
        kept = outputs[:, ::stride]
        many = {name: [value for value in values for _ in range(kept.shape[1])] for name, values in columns.items()}
        scores = of(kept.flatten(0, 1), [prompt for prompt in prompts for _ in range(kept.shape[1])], **accepted(of, many))
        if isinstance(scores, Mapping):
            return {part: values.unflatten(0, kept.shape[:2]).mean(1) for part, values in scores.items()}
        return scores.unflatten(0, kept.shape[:2]).mean(1)

    low, high = (of.low, of.high) if isinstance(of, Scorer) else (None, None)
    differentiable = isinstance(of, Differentiable) and of.differentiable
    return Scorer("frames", score, differentiable=differentiable, low=low, high=high, reads=columns_read(of))
