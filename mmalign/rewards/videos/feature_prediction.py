"""How well a video's second half follows from its first, to a model that has learned to predict features of videos."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Interior
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.pictures import fitted, standard
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards._shared.videos import on_videos
from mmalign.types import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def feature_prediction(
    *, weights: str = "facebook/vjepa2-vitl-fpc64-256", context: Interior = 0.5, device: str | None = None, rows_at_once: Count = 2
) -> Scorer:
    """Reward of 0 or less: minus the mean absolute error of V-JEPA 2's prediction of the last frames' features from the first frames.

    What breaks the ways of the world surprises such a model; a video that does nothing is easy to predict: combine it with ``motion``.
    Needs videos; prompts are not read. Differentiable. Preprocessing: bicubic to the model's size on the shorter side, the middle cut
    out, normalised by ImageNet's mean and deviation.

    Args:
        weights: hub id or folder of a V-JEPA 2 in the transformers format. context: the part of the video that is shown, in whole
            tubelets (pairs of frames), at least one, and at least one to predict; frames beyond the last whole tubelet are left out.
        device: a GPU if there is one. rows_at_once: videos in one call of the model.

    Source: V-JEPA 2, https://arxiv.org/abs/2506.09985; prediction error as surprise, https://arxiv.org/abs/2502.11831, where
    windows slide over the video and their largest error counts; here it is one split. Checksum not known here.

    Errors: UserError for weights that cannot be read, and a context outside of 0..1.
    """
    from transformers import VJEPA2Model

    if not 0 < context < 1:
        raise UserError(f"feature_prediction.context: got {context}, takes a part between 0 and 1")
    model = pretrained("feature_prediction.weights", VJEPA2Model, weights, "V-JEPA 2")
    place = device_of(device)
    model = model.to(place).eval().requires_grad_(False)
    side, depth = int(model.config.crop_size), int(model.config.tubelet_size)
    patches = (side // int(model.config.patch_size)) ** 2

    def score(videos: Tensor, prompts: list[str]) -> Tensor:
        tubelets = videos.shape[1] // depth
        frames = videos[:, : tubelets * depth].to(place)
        pixels = standard(fitted(frames.flatten(0, 1), side).clamp(0, 1), MEAN, STD).unflatten(0, frames.shape[:2])
        shown = min(tubelets - 1, max(1, round(context * tubelets))) * patches
        every = torch.arange(tubelets * patches, device=place)[None].expand(len(videos), -1)
        predicted = model(pixel_values_videos=pixels, context_mask=[every[:, :shown]], target_mask=[every[:, shown:]]).predictor_output
        return -(predicted.last_hidden_state - predicted.target_hidden_state).abs().flatten(1).mean(1)

    return on_videos("feature_prediction", score, differentiable=True, frames=2 * depth, rows_at_once=rows_at_once, high=0.0)
