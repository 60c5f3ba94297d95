"""What each pixel of an image or a video counts: ``mask`` of a forward policy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmalign.arguments.ranges import Natural, Proportion
from mmalign.data._reading.parsing import is_file
from mmalign.data._reading.tables import numbered_lines
from mmalign.media import Broken, Limits, image
from mmalign.types import UserError

__all__ = ["frames", "masked"]

Mask = Callable[[Tensor, list[str]], Tensor]


def masked(path: str, *, key: str = "prompt", column: str = "mask", outside: Proportion = 0.0) -> Mask:
    """A mask for each prompt, white where a pixel counts, from JSON lines with a prompt and an image's path in each.

    key, column: where prompt and path stand; paths are relative to the file. Images are brought to the size of the outputs, and counted by
    their brightness; of a video, every frame by the same. outside: what black counts.

    Errors: UserError with the line's number for a line that cannot be read, a file that is not there, or one prompt with two masks; and for
    a prompt without a mask when it is asked for.
    """
    file = Path(path)
    if not is_file(file):
        raise UserError(f"mask.path: no such file: {path[:240]}")
    sources: dict[str, Path] = {}
    for number, row in numbered_lines(file):
        if isinstance(row, Broken) or not isinstance(row.get(key), str) or not isinstance(row.get(column), str):
            why = row if isinstance(row, Broken) else f"takes an object with strings under {key!r} and {column!r}"
            raise UserError(f"{path}, line {number}: {why}")
        source = file.parent / str(row[column])
        if sources.setdefault(str(row[key]), source) != source:
            raise UserError(f"{path}, line {number}: {str(row[key])[:120]!r} has another mask already; word it differently")
        if not is_file(source):
            raise UserError(f"{path}, line {number}: no such file: {str(source)[:240]}")

    def mask(outputs: Tensor, prompts: list[str]) -> Tensor:
        if missing := [prompt for prompt in prompts if prompt not in sources]:
            raise UserError(f"mask: {path} has none for {missing[0]!r}")
        size = (int(outputs.shape[-2]), int(outputs.shape[-1]))
        pictures = torch.stack([_brightness(sources[prompt], size) for prompt in prompts])
        wide = pictures if outputs.ndim == 4 else pictures.unsqueeze(1).expand(-1, outputs.shape[1], -1, -1, -1)
        return outside + (1 - outside) * wide

    return mask


def frames(first: Natural = 0, last: Natural | None = None, *, outside: Proportion = 0.0) -> Mask:
    """A mask of videos in which the frames ``first`` to ``last`` count, both among them; by default all from ``first`` on.

    first, last: numbers of frames from 0. outside: what the others count.

    Errors: UserError for a last frame before the first, and, when it is asked for, for images, and videos without such frames.
    """
    if last is not None and last < first:
        raise UserError(f"mask.last: got {last}, takes {first} or more")

    def mask(outputs: Tensor, prompts: list[str]) -> Tensor:
        if outputs.ndim != 5 or outputs.shape[1] <= first:
            raise UserError(f"mask: got outputs of {list(outputs.shape)}, takes videos of more than {first} frames")
        counts = torch.full((len(outputs), outputs.shape[1], 1, *outputs.shape[-2:]), outside)
        counts[:, first : None if last is None else last + 1] = 1.0
        return counts

    return mask


def _brightness(path: Path, size: tuple[int, int]) -> Tensor:
    """``[1, H, W]`` in 0..1."""
    try:
        return image(str(path), Limits(size=size)).mean(0, keepdim=True)
    except Broken as error:
        raise UserError(f"mask: {path}: {error}") from error
