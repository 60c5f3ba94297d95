"""Boxes ``[x1, y1, x2, y2]``: read off a text, compared, and matched one to one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

BOX = ("bbox_2d", "bbox", "box")


class Box(NamedTuple):
    """A box in whatever unit the text has, with its label, or an empty one."""

    corners: tuple[float, float, float, float]
    label: str


def json_in(text: str) -> Any:
    """The JSON value in a text: all of it, what stands in its last code fence, or from the first bracket to the last; None for none."""
    fences = text.split("```")[1:-1:2]  # closed ones
    first = min((place for place in (text.find("["), text.find("{")) if place >= 0), default=-1)
    last = max(text.rfind("]"), text.rfind("}"))
    for candidate in (text, *(fence.removeprefix("json") for fence in fences[-1:]), text[first : last + 1] if 0 <= first < last else ""):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            continue  # the next way to read it
    return None


def boxes_in(value: Any) -> list[Box] | None:
    """The boxes of a JSON value: a list of objects with ``bbox_2d`` (or ``bbox``, ``box``) and ``label``, or of four numbers each.

    None where it is no such list; a box whose corners are not in order, or not finite, is left out.
    """
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return None
    boxes = []
    for item in value:
        corners = next((item[key] for key in BOX if key in item), None) if isinstance(item, dict) else item
        if not isinstance(corners, list) or len(corners) != 4 or not all(_number(corner) for corner in corners):
            return None
        label = str(item.get("label", "")) if isinstance(item, dict) else ""
        x1, y1, x2, y2 = (float(corner) for corner in corners)
        if x1 < x2 and y1 < y2:
            boxes.append(Box((x1, y1, x2, y2), label))
    return boxes


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def overlaps(first: Sequence[Box], second: Sequence[Box]) -> Tensor:
    """Intersection over union of each two boxes, ``[n, m]`` float64 in 0..1."""
    a, b = (torch.tensor([box.corners for box in boxes], dtype=torch.float64).view(-1, 4) for boxes in (first, second))
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (area[0][:, None] + area[1][None, :] - shared).clamp(min=1e-300)


def matched(first: Sequence[Box], second: Sequence[Box], *, labels: bool = False) -> Tensor:
    """Overlaps ``[min(n, m)]`` of the one-to-one matching whose sum of overlaps is largest. labels: only equal labels overlap."""
    from scipy.optimize import linear_sum_assignment

    table = overlaps(first, second)
    if labels:
        same = [[plain(one.label) == plain(other.label) for other in second] for one in first]
        table = table * torch.tensor(same, dtype=torch.bool).view(table.shape)
    rows, columns = linear_sum_assignment(-table.numpy())
    return table[torch.as_tensor(rows), torch.as_tensor(columns)]


def plain(text: str) -> str:
    """A name without case, articles, punctuation and extra spaces."""
    words = re.sub(r"[^\w\s]", " ", text.casefold()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
