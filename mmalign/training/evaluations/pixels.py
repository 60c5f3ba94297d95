"""Cheap numbers of pictures and videos, which show what a reward was paid for where no judge looks: darkness, edges, noise, stillness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.runs.pixels import PREFIX

AT_ONCE = 2**24  # numbers of pictures that are looked at together
FRAMES = 16  # of a video at most, evenly spaced; its motion is of all
LEVELS = 16  # of each channel, for the entropy of colours
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
HIGH = 0.25  # cycles per pixel; 0.5 is the highest there is along a side


def pixel_statistics(outputs: Any) -> dict[str, Tensor]:
    """``pixels/NAME -> [B]`` float64 on the CPU, of images ``[B, 1 or 3, H, W]`` or videos ``[B, F, 1 or 3, H, W]`` in 0..1; {} of others.

    Of the luminance Y: ``brightness`` its mean, ``contrast`` its standard deviation, ``edges`` the mean length of its gradient, per pixel,
    ``high_frequency`` the share of its energy, but for its mean, above half of the highest frequency. ``colour_entropy``: bits, of a
    histogram of 16 levels a channel. ``saturation``: (max - min) / max of the channels, 0 of black, not of grey pictures. ``motion`` of
    videos: the mean absolute difference of neighbouring frames. Those of a video are means over at most 16 of its frames.

    NaN where there is none: of a picture with a number that is not finite, of high frequencies in a flat one, of motion in one frame.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim not in (4, 5) or outputs.shape[-3] not in (1, 3) or not len(outputs):
        return {}
    parts = [_of_rows(rows.detach().float()) for rows in outputs.split(max(1, AT_ONCE // max(1, outputs[0].numel())))]
    return {f"{PREFIX}{name}": torch.cat([part[name] for part in parts]).double().cpu() for name in parts[0]}


def _of_rows(rows: Tensor) -> dict[str, Tensor]:
    finite = rows.flatten(1).isfinite().all(1)
    rows = torch.where(finite.view(-1, *(1,) * (rows.ndim - 1)), rows, 0.0).clamp(0, 1)
    if rows.ndim == 4:
        found = _of_pictures(rows)
    else:
        some = torch.linspace(0, rows.shape[1] - 1, min(FRAMES, rows.shape[1]), device=rows.device).round().long()
        frames = rows[:, some]
        found = {name: values.unflatten(0, frames.shape[:2]).mean(1) for name, values in _of_pictures(frames.flatten(0, 1)).items()}
        found["motion"] = (rows[:, 1:] - rows[:, :-1]).abs().flatten(1).mean(1)
    return {name: torch.where(finite, values, torch.nan) for name, values in found.items()}


def _of_pictures(pictures: Tensor) -> dict[str, Tensor]:
    """Of ``[n, 1 or 3, H, W]`` in 0..1, finite."""
    luma = torch.tensor(LUMA if pictures.shape[1] == 3 else (1.0,), device=pictures.device)
    y = (pictures * luma.view(-1, 1, 1)).sum(1)
    down, right = y[:, 1:, :-1] - y[:, :-1, :-1], y[:, :-1, 1:] - y[:, :-1, :-1]
    found = {
        "brightness": y.mean((1, 2)),
        "contrast": y.flatten(1).std(1, correction=0),
        "edges": torch.hypot(down, right).mean((1, 2)),
        "high_frequency": _high(y),
        "colour_entropy": _entropy(pictures),
    }
    if pictures.shape[1] == 3:
        high, low = pictures.amax(1), pictures.amin(1)
        found["saturation"] = torch.where(high > 0, (high - low) / high.clamp(min=1e-12), 0.0).mean((1, 2))
    return found


def _high(y: Tensor) -> Tensor:
    energy = torch.fft.fft2(y - y.mean((1, 2), keepdim=True)).abs().square()
    frequency = torch.hypot(*torch.meshgrid(*(torch.fft.fftfreq(side, device=y.device) for side in y.shape[1:]), indexing="ij"))
    whole = energy.sum((1, 2))
    flat = whole <= 1e-9 * y.shape[1] ** 2 * y.shape[2] ** 2  # a deviation of less than 1e-4.5 is rounding
    return torch.where(flat, torch.nan, (energy * (frequency > HIGH)).sum((1, 2)) / whole)


def _entropy(pictures: Tensor) -> Tensor:
    levels = (pictures * LEVELS).long().clamp(max=LEVELS - 1).flatten(2)
    colours = (levels * LEVELS ** torch.arange(levels.shape[1], device=levels.device)[:, None]).sum(1)
    shares = torch.zeros(len(levels), LEVELS ** levels.shape[1], device=levels.device)
    shares.scatter_add_(1, colours, torch.full(colours.shape, 1 / colours.shape[1], device=levels.device))
    return -torch.xlogy(shares, shares).sum(1) / torch.log(torch.tensor(2.0))
