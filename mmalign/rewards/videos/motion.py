"""How much moves in a video, up to what is wanted: what keeps other rewards from being won by a still picture."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.videos import on_videos
from mmalign.types import UserError


def motion(*, wanted: NotNegative = 0.05, rows_at_once: Count = 16) -> Scorer:
    """Reward in 0..1: ``min(1, d / wanted)``, d the mean absolute difference of neighbouring frames, of numbers in 0..1.

    Noise, flicker and cuts move as much as anything: combine it with ``frame_consistency``. Beyond ``wanted`` nothing more is gained.
    wanted: mean absolute difference of neighbouring frames that earns 1. Needs videos; prompts are not read. Differentiable below
    ``wanted``. No weights, no preprocessing. Source: ours; VBench's dynamic degree asks the optical flow of a model instead.

    Errors: UserError for a ``wanted`` that is not above 0.
    """
    if not wanted > 0:
        raise UserError(f"motion.wanted: got {wanted}, takes a number above 0")

    def score(videos: Tensor, prompts: list[str]) -> Tensor:
        return ((videos[:, 1:] - videos[:, :-1]).abs().flatten(1).mean(1) / wanted).clamp(max=1)

    return on_videos("motion", score, differentiable=True, rows_at_once=rows_at_once, low=0.0, high=1.0)
