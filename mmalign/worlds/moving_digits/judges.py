"""Who judges moving digits: a proxy that gives the reward, and two judges that training never sees.

The proxy follows the centre of brightness and nothing else: any bright thing that moves pleases it. Gold knows what the video has to
be. Identity asks what digit it still is once it has moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.types import UserError
from mmalign.worlds.digits.judges import gold_classifier
from mmalign.worlds.moving_digits.data import CANVAS, DIRECTIONS, ENLARGED, FRAMES, STEP, moved, reduced, targets

__all__ = ["moving_digits_error", "moving_digits_gold", "moving_digits_identity", "moving_digits_proxy"]

MASS = 8.0  # pixels; the faintest real scan has more
SCAN = 8
FAINT = 0.2  # brightness that counts as background for a centre
WRONG = 0.24  # share of brightness, squared, that may be wrong for gold; a digit that goes both ways at once has more


def _canvases(outputs: Any) -> Tensor:
    side = CANVAS * ENLARGED
    if not isinstance(outputs, Tensor) or outputs.ndim != 5 or outputs.shape[1] != FRAMES or tuple(outputs.shape[3:]) != (side, side):
        got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UserError(f"moving digits judge: got outputs {got}, takes videos [batch, {FRAMES}, channels, {side}, {side}] in 0..1")
    return reduced(outputs)


def centres(canvases: Tensor) -> Tensor:
    """Centres of brightness ``[..., 2]`` (x, y; pixels) of ``canvases [..., 16, 16]``, faint light left out."""
    canvases = (canvases - FAINT).clamp(min=0)
    places = torch.arange(CANVAS, device=canvases.device, dtype=canvases.dtype)
    light = canvases.sum((-2, -1)).clamp(min=1e-3)
    return torch.stack([(canvases.sum(axis) * places).sum(-1) / light for axis in (-2, -1)], -1)


def moving_digits_proxy(*, temperature: Positive = 1.0) -> Callable[..., Tensor]:
    """Reward in 0..1: how far the centre of brightness moves the way that was asked for, times whether something is there.

    The softmax, over the four directions and standing still, of how far the centre comes from the first frame to the second (in pixels
    over ``temperature``); times the brightness of the second frame over that of a faint digit, at most 1. Differentiable. It does not
    look at shapes, nor at what comes later.

    temperature: pixels, above 0; the lower, the less a shorter way counts.
    """

    def reward(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        canvases = _canvases(outputs)
        first, second = centres(canvases[:, :2]).unbind(1)
        ways = torch.tensor([*DIRECTIONS.values(), (0, 0)], dtype=first.dtype, device=first.device)
        shares = ((second - first) @ ways.T / temperature).softmax(-1)
        wanted = targets(prompts)[1].to(shares.device)
        return shares.gather(1, wanted[:, None])[:, 0] * (canvases[:, 1].sum((1, 2)) / MASS).clamp(max=1)

    return reward


def wrong(canvases: Tensor, directions: Tensor) -> Tensor:
    """How far videos are from their first frame moved in ``directions [B]``: ``canvases [B, F, 16, 16]`` -> ``[B]``.

    ``sum |frame - truth|^2 / sum (|frame|^2 + |truth|^2)`` over the frames after the first: 0 is right, 1 shares nothing with it.
    """
    truth = torch.stack([moved(canvases[:, 0], directions, frame) for frame in range(1, FRAMES)], 1)
    after = canvases[:, 1:]
    return (after - truth).square().sum((1, 2, 3)) / (after.square() + truth.square()).sum((1, 2, 3)).clamp(min=1e-6)


def moving_digits_gold() -> Callable[..., Tensor]:
    """Judge, 0 or 1: whether the video is what the world says it has to be, with at most 24 % of the brightness (squared) wrong."""

    def score(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        return (wrong(_canvases(outputs).cpu(), targets(prompts)[1]) <= WRONG).float()

    return score


def moving_digits_error() -> Callable[..., dict[str, float]]:
    """Metric: how far the videos that go the right way are from what they have to be, the median of ``wrong``.

    Of those that no other direction explains better, so that it is picture quality and not obedience. NaN where there is none.
    """

    def measure(outputs: Any, prompts: list[str], **columns: Any) -> dict[str, float]:
        canvases, directions = _canvases(outputs).cpu(), targets(prompts)[1]
        every = torch.stack([wrong(canvases, torch.full_like(directions, number)) for number in range(len(DIRECTIONS))])
        right = every.argmin(0) == directions
        return {"error": float(every.amin(0)[right].median()) if bool(right.any()) else math.nan}

    return measure


def pictures(canvases: Tensor) -> Tensor:
    """``[B, 8, 8]``: what surrounds the centre of brightness of ``canvases [B, 16, 16]``, in whole steps of the world."""
    corner = ((centres(canvases) - (SCAN - 1) / 2) / STEP).round().long().clamp(0, 2) * STEP
    return torch.stack([one[y : y + SCAN, x : x + SCAN] for one, (x, y) in zip(canvases, corner.tolist(), strict=True)])


def moving_digits_identity() -> Callable[..., Tensor]:
    """Judge, 0 or 1: whether a classifier, fitted to half B, still reads the digit of the prompt in the second frame."""

    def score(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        second = pictures(_canvases(outputs)[:, 1].cpu())
        return (torch.from_numpy(gold_classifier().predict(second.flatten(1).numpy())) == targets(prompts)[0]).float()

    return score
