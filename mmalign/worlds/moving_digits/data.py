"""Videos of a digit that moves left, right, up or down from a given still, and how a prompt asks for one.

The world is a canvas of 16x16 pixels. A scan of 8x8 starts in the middle and moves by 4 pixels a frame, the size of the denoiser's
patches, so that it is at the edge in the second of four frames, half of it is left in the third, and it is gone in the last. A still and
a direction say what the whole video has to be. Videos are shown at twice that size, 32x32, each pixel as a square of four, because
LTX's pipeline takes sizes that 32 divides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.types import UserError
from mmalign.worlds.digits.data import WORDS, digit_of, real

__all__ = ["moving_digits_prompts", "moving_digits_real", "moving_digits_stills"]

FRAMES, CANVAS, ENLARGED, STEP = 4, 16, 2, 4
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # (x, y), y grows downwards
NAMES = tuple(DIRECTIONS)
STILL = re.compile(r"#([ab])(\d+)")


def stills(scans: Tensor) -> Tensor:
    """Canvases ``[B, 16, 16]`` with ``scans [B, 1, 8, 8]`` in the middle."""
    return torch.nn.functional.pad(scans[:, 0], (STEP,) * 4)


def moved(canvases: Tensor, directions: Tensor, frame: int) -> Tensor:
    """What ``canvases [B, 16, 16]`` look like after ``frame`` frames of moving in ``directions [B]`` (places in ``NAMES``)."""
    wide = torch.nn.functional.pad(canvases, (STEP * frame,) * 4)
    far = STEP * frame
    every = [wide[..., far - far * y :, far - far * x :][..., :CANVAS, :CANVAS] for x, y in DIRECTIONS.values()]
    return torch.stack(every)[directions, torch.arange(len(canvases))]


def videos(canvases: Tensor, directions: Tensor) -> Tensor:
    """Videos ``[B, F, 1, 32, 32]`` in 0..1 that begin with ``canvases [B, 16, 16]``."""
    return enlarged(torch.stack([moved(canvases, directions, frame) for frame in range(FRAMES)], 1))[:, :, None]


def enlarged(canvas: Tensor) -> Tensor:
    """``[..., 16, 16]`` -> ``[..., 32, 32]``, each pixel as a square."""
    return canvas.repeat_interleave(ENLARGED, -2).repeat_interleave(ENLARGED, -1)


def reduced(outputs: Tensor) -> Tensor:
    """Videos ``[B, F, C, 32, 32]`` as grey canvases ``[B, F, 16, 16]``: means over channels and over squares."""
    return torch.nn.functional.avg_pool2d(outputs.float().mean(2), ENLARGED)


def parsed(prompt: str) -> tuple[int, int]:
    """(digit, place in ``NAMES``) that a prompt asks for. Errors: UserError where it does not name one of each."""
    words = STILL.sub("", prompt.lower())
    directions = {NAMES.index(word) for word in re.findall(r"[a-z]+", words) if word in NAMES}
    if len(directions) != 1:
        raise UserError(f"prompt: got {prompt!r}, takes one digit and one direction of {', '.join(NAMES)}, such as 'a seven moving left'")
    return digit_of(words), directions.pop()


def targets(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Digits ``[B]`` and directions ``[B]`` of prompts."""
    pairs = torch.tensor([parsed(prompt) for prompt in prompts], dtype=torch.int64)
    return pairs[:, 0], pairs[:, 1]


def first_frames(prompts: Sequence[str]) -> Tensor:
    """The canvases ``[B, 16, 16]`` that prompts begin with: ``#b12`` is scan 12 of half B among those of its digit.

    ``#a0`` where a prompt names none.

    Errors: UserError for a number without a scan.
    """
    scans = []
    for prompt in prompts:
        half, number = (STILL.search(prompt.lower()) or STILL.search("#a0")).groups()  # type: ignore[union-attr]
        images, labels = real("A" if half == "a" else "B")
        some = images[labels == parsed(prompt)[0]]
        if int(number) >= len(some):
            raise UserError(f"prompt: got {prompt!r}, takes #{half}0 to #{half}{len(some) - 1} for that digit")
        scans.append(some[int(number)])
    return stills(torch.stack(scans))


def moving_digits_stills() -> Callable[[list[str]], dict[str, Any]]:
    """Arguments of the pipeline's call that differ by prompt: ``image [B, 1, 32, 32]`` in 0..1, what its video begins with."""
    return lambda prompts: {"image": enlarged(first_frames(prompts))[:, None]}


def moving_digits_prompts(*, half: Literal["a", "b"] = "a", each: Count = 8) -> list[str]:
    """``a zero moving left #a0`` and so on: stills of every digit, a direction for each; directions take turns.

    half: of the scans, ``a`` or ``b``. each: stills of every digit, 1 to 80.

    Errors: UserError for another half or number.
    """
    if half not in ("a", "b") or not 1 <= each <= 80:
        raise UserError(f"moving_digits_prompts: got half={half!r}, each={each}, takes a or b, and 1 to 80")
    return [f"a {word} moving {NAMES[(digit + number) % 4]} #{half}{number}" for number in range(each) for digit, word in enumerate(WORDS)]


def real_videos(prompts: Sequence[str]) -> Tensor:
    """What prompts ask for, ``[B, F, 1, 32, 32]`` in 0..1."""
    return videos(first_frames(prompts), targets(prompts)[1])


def moving_digits_real() -> Callable[[Sequence[str], int], Tensor]:
    """What prompts ask for, to show beside samples: ``(prompts, columns) -> [prompts, columns, F, 1, 32, 32]``, columns all alike."""
    return lambda prompts, columns: real_videos(prompts)[:, None].expand(-1, columns, -1, -1, -1, -1)
