"""Samples in trackers: a picture of the grid, or all of its frames where it is one of videos."""

from __future__ import annotations

import io
from typing import Any

from torch import Tensor

from mmalign.runs.pictures import gif, opaque

TAG = "eval/samples"


def tensorboard(tracker: Any, pixels: Tensor, step: int) -> None:
    """pixels: ``[4, H, W]`` uint8; a GIF of ``[F, 4, H, W]``, which TensorBoard shows moving."""
    if pixels.ndim == 3:
        tracker.writer.add_image(TAG, opaque(pixels), global_step=step)
        return
    from tensorboard.compat.proto.summary_pb2 import Summary

    film = Summary.Image(height=pixels.shape[2], width=pixels.shape[3], colorspace=3, encoded_image_string=gif(pixels))
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=TAG, image=film)]), step)


def wandb(tracker: Any, pixels: Tensor, step: int) -> None:
    """As ``tensorboard``."""
    import wandb as package

    if pixels.ndim == 3:
        tracker.log_images({TAG: [opaque(pixels).permute(1, 2, 0).numpy()]}, step=step)
    else:
        tracker.log({TAG: package.Video(io.BytesIO(gif(pixels)), format="gif")}, step=step)


def trackio(tracker: Any, pixels: Tensor, step: int) -> None:
    """As ``tensorboard``."""
    import trackio as package

    if pixels.ndim == 3:
        shown = package.Image(opaque(pixels).permute(1, 2, 0).numpy())
    else:
        shown = package.Video(opaque(pixels).numpy(), fps=4, format="gif")
    tracker.log({TAG: shown}, step=step)


SHOW = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}
"""Trackers that are shown samples; others hear of numbers alone."""
