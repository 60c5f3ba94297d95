"""How well a video's second half follows from its first, to a model that has learned to predict features of videos."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Interior
from mmalign.media.preprocessing import fitted, standard
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.videos import on_videos
from mmalign.types import UserError

OVER = ("mean", "worst")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def feature_prediction(
    *, weights: str = "facebook/vjepa2-vitl-fpc64-256", context: Interior = 0.5, window: Count | None = None, stride: Count | None = None,
    over: Literal["mean", "worst"] = "mean", device: str | None = None, rows_at_once: Count = 2,
) -> Scorer:  # fmt: skip
    """Reward of 0 or less: minus the mean absolute error of V-JEPA 2's prediction of the last frames' features from the first frames.

    What breaks the ways of the world surprises such a model; a video that does nothing is easy to predict: combine it with ``motion``.
    Needs videos; prompts are not read. Differentiable. Preprocessing: bicubic to the model's size on the shorter side, the middle cut
    out, normalised by ImageNet's mean and deviation.

    Args:
        weights: hub id or folder of a V-JEPA 2 in the transformers format. context: the part of the video that is shown, in whole
            tubelets (pairs of frames), at least one, and at least one to predict; frames beyond the last whole tubelet are left out.
        window: frames of a window that slides over the video, in each of which the last frames are predicted from the first; null takes
            the whole video for one. stride: frames from one window to the next; half a window by default. Both in whole tubelets; the last
            window ends with the video. over: what the windows' scores become, their mean or the worst of them.
        device: a GPU if there is one. rows_at_once: videos in one call of the model.

    Source: V-JEPA 2, https://arxiv.org/abs/2506.09985; prediction error as surprise, https://arxiv.org/abs/2502.11831, where
    windows slide over the video and their largest error counts (``over: worst``); their mean is MIND-V's physical foresight,
    https://arxiv.org/abs/2512.06628, with cosines or errors of features. Checksum of the weights not known here.

    Errors: UserError for weights that cannot be read, a context outside of 0..1, and windows of less than two tubelets.
    """
    from transformers import VJEPA2Model

    if not 0 < context < 1:
        raise UserError(f"feature_prediction.context: got {context}, takes a part between 0 and 1")
    model = pretrained("feature_prediction.weights", VJEPA2Model, weights, "V-JEPA 2")
    place = device_of(device)
    model = model.to(place).eval().requires_grad_(False)
    side, depth = int(model.config.crop_size), int(model.config.tubelet_size)
    if (window is not None and window < 2 * depth) or (stride is not None and (window is None or stride < depth)) or over not in OVER:
        got = f"window={window}, stride={stride}, over={over!r}"
        raise UserError(
            f"feature_prediction: got {got}; takes windows of {2 * depth} frames or more, a stride of {depth} or more, mean or worst"
        )
    patches = (side // int(model.config.patch_size)) ** 2

    def error(frames: Tensor) -> Tensor:
        tubelets = frames.shape[1] // depth
        pixels = standard(fitted(frames.flatten(0, 1), side).clamp(0, 1), MEAN, STD).unflatten(0, frames.shape[:2])
        shown = min(tubelets - 1, max(1, round(context * tubelets))) * patches
        every = torch.arange(tubelets * patches, device=place)[None].expand(len(frames), -1)
        predicted = model(pixel_values_videos=pixels, context_mask=[every[:, :shown]], target_mask=[every[:, shown:]]).predictor_output
        return (predicted.last_hidden_state - predicted.target_hidden_state).abs().flatten(1).mean(1)

    def score(videos: Tensor, prompts: list[str]) -> Tensor:
        length = videos.shape[1] // depth
        wide = length if window is None else min(length, window // depth)
        step = max(1, wide // 2 if stride is None else stride // depth)
        starts = sorted({*range(0, length - wide + 1, step), length - wide})
        frames = videos.to(place)
        errors = torch.stack([error(frames[:, start * depth : (start + wide) * depth]) for start in starts])
        return -(errors.mean(0) if over == "mean" else errors.amax(0))

    return on_videos("feature_prediction", score, differentiable=True, frames=2 * depth, rows_at_once=rows_at_once, high=0.0)
