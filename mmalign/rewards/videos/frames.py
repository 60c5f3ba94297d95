"""A reward for videos from one for images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Differentiable, Stepped, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count, Seed
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def frames(*, of: Callable[..., Any], stride: Count = 1, learned: Count | None = None, seed: Seed = 0) -> Scorer:
    """Reward of a video: the mean over every ``stride``-th frame, the first included, of an image reward; in that reward's range.

    stride: from one frame that is scored to the next. learned: of how many of these a gradient arrives, others each training step and
    ``F / learned`` times as large, so that on average it is that of all F, and memory is that of so many; None: of all; the score is that
    of all in any case. seed: of which. of: ``(images [n, C, H, W], prompts) -> [n]``, or ``{part: [n]}``; a frame without a
    score (NaN) leaves its video without one. It sees one frame at a time: movement, and whether frames fit together, count for nothing.
    Differentiable where ``of`` is. Needs videos ``[B, F, C, H, W]`` and what ``of`` needs; no weights and no preprocessing of its own.
    Source: ours; flow_grpo's OCR of videos reads every 4th frame.

    Errors: UserError for a stride below 1, and for fewer frames than learn.
    """
    if stride < 1:
        raise UserError(f"frames.stride: got {stride}, takes 1 or more")
    now, stepped = {"step": 0}, isinstance(of, Stepped) and callable(of.at)
    if not callable(of) or of_latents(of):
        raise UserError(f"frames.of: got {type(of).__name__}, takes a reward of images")

    def score(outputs: Any, prompts: list[str], **columns: Any) -> Any:
        if not isinstance(outputs, Tensor) or outputs.ndim != 5 or len(outputs) != len(prompts):
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise UserError(f"frames: got outputs {got} for {len(prompts)} prompts, takes videos [batch, frames, channels, height, width]")
        kept = outputs[:, ::stride]
        if learned is None or not kept.requires_grad:
            scores = _of_frames(of, kept, prompts, columns)
        else:
            scores = _masked(of, kept, prompts, columns, _drawn(kept.shape[1], learned, seed + now["step"]))
        if isinstance(scores, Mapping):
            return {part: values.mean(1) for part, values in scores.items()}
        return scores.mean(1)

    def at(step: int) -> None:
        now["step"] = step
        if stepped:
            of.at(step)  # type: ignore[attr-defined]

    low, high = (of.low, of.high) if isinstance(of, Scorer) else (None, None)
    differentiable = isinstance(of, Differentiable) and of.differentiable
    return Scorer(
        "frames", score, differentiable=differentiable, low=low, high=high, at=at if stepped or learned else None, reads=columns_read(of)
    )


def _of_frames(of: Callable[..., Any], videos: Tensor, prompts: list[str], columns: Mapping[str, list[Any]]) -> Any:
    """What ``of`` says of each frame, ``[B, F]``, or that by part."""
    many = {name: [value for value in values for _ in range(videos.shape[1])] for name, values in columns.items()}
    scores = of(videos.flatten(0, 1), [prompt for prompt in prompts for _ in range(videos.shape[1])], **accepted(of, many))
    if isinstance(scores, Mapping):
        return {part: values.unflatten(0, videos.shape[:2]) for part, values in scores.items()}
    return scores.unflatten(0, videos.shape[:2])


def _masked(of: Callable[..., Any], videos: Tensor, prompts: list[str], columns: Mapping[str, list[Any]], learns: Tensor) -> Any:
    """The same, with a graph of the frames ``learns [F]`` alone."""
    own = _of_frames(of, videos[:, learns], prompts, columns)
    with torch.no_grad():
        others = _of_frames(of, videos[:, ~learns], prompts, columns) if not bool(learns.all()) else None

    def together(mine: Tensor, theirs: Tensor | None) -> Tensor:
        larger = mine.detach() + len(learns) / int(learns.sum()) * (mine - mine.detach())
        scores = mine.new_zeros(videos.shape[:2])
        scores[:, ~learns] = mine.new_zeros(()) if theirs is None else theirs
        scores[:, learns] = larger
        return scores

    if isinstance(own, Mapping):
        return {part: together(values, None if others is None else others[part]) for part, values in own.items()}
    return together(own, others)


def _drawn(count: int, learned: Count, seed: Seed) -> Tensor:
    """``[count]`` bool: which frames learn. Errors: UserError for more than there are."""
    if learned > count:
        raise UserError(f"frames.learned: got {learned}, and {count} frames are scored; takes at most these")
    learns = torch.zeros(count, dtype=torch.bool)
    learns[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:learned]] = True
    return learns
