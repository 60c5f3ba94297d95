"""A closer look at a picture, as a tool."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from mmalign.arguments.ranges import Count
from mmalign.environments._parts import Tool

Units = Literal["pixels", "thousandths", "cells"]


def zoom(*, units: Units = "thousandths", cells: tuple[Count, Count] = (2, 2), smallest: Count = 56) -> Tool:
    """Tool: a part of a picture of the conversation, cut out of it and shown by itself, at a size at which more of it is seen.

    The model names a box, ``left top right bottom`` (a list, or the numbers in a text), and the picture, 1 for the first, which is the
    one that it is asked about. Vision-language models that were taught to point have units of their own: Qwen2.5-VL's are ``pixels`` of
    the picture, Qwen3-VL's and others' ``thousandths`` of its sides. With ``cells`` it names a row and a column of a grid instead.

    It raises (and so answers, see ``tools``) for what is no box in the picture, and for a picture that is not there.

    Args:
        units: of a box.
        cells: rows and columns of the grid, where those are named.
        smallest: pixels of the shorter side of what is shown; a smaller part is scaled up.

    Source: a tool of this kind is that of DeepEyes (https://arxiv.org/abs/2505.14362, *recalled*).

    Examples:
        >>> from PIL import Image
        >>> look = mm.environments.zoom(units="pixels", smallest=10)
        >>> look("10 0 40 20", pictures=[Image.new("RGB", (64, 64))]).size
        (30, 20)
    """

    def look(box: list, picture: int = 1, *, pictures: Sequence[Any] = ()) -> Any:  # type: ignore[type-arg]
        """A part of a picture, shown larger."""
        if not 1 <= int(picture) <= len(pictures):
            raise ValueError(f"there is no picture {picture}; there are {len(pictures)}")
        whole = pictures[int(picture) - 1]
        numbers = [float(number) for number in (re.findall(r"-?\d+(?:\.\d+)?", box) if isinstance(box, str) else box)]
        part = whole.crop(_in_pixels(numbers, whole.size, units, cells))
        scale = max(1.0, smallest / min(part.size))
        return part if scale == 1.0 else part.resize([round(side * scale) for side in part.size])

    return look


def _in_pixels(numbers: Sequence[float], size: tuple[int, int], units: Units, cells: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part of a picture of ``size``, width and height. Errors: ValueError."""
    width, height = size
    if units == "cells":
        rows, columns = cells
        if len(numbers) != 2 or not (1 <= numbers[0] <= rows and 1 <= numbers[1] <= columns):
            raise ValueError(f"takes a row of 1 to {rows} and a column of 1 to {columns}")
        row, column = int(numbers[0]) - 1, int(numbers[1]) - 1
        numbers = [column * width / columns, row * height / rows, (column + 1) * width / columns, (row + 1) * height / rows]
    elif len(numbers) != 4:
        raise ValueError("takes four numbers: left, top, right and bottom")
    elif units == "thousandths":
        numbers = [number * side / 1000 for number, side in zip(numbers, (width, height, width, height), strict=True)]
    left, top, right, bottom = (round(number) for number in numbers)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"takes a box within the picture, of {width} by {height} pixels")
    return left, top, right, bottom
