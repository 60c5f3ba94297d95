"""Several points for one thing to click on, the likeliest first: more of them explore, and the first right one counts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count
from mmalign.rewards._shared.boxes import boxes_in, json_in
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

THINK = re.compile(r"<think>(.*?)</think>(.*)", re.DOTALL)
MOST = 200  # points that are looked at: the time for lines grows with their square


def several_points(*, think: bool = True, most: Count | None = None, column: Column = "box") -> Scorer:
    """``1 + a`` in -1..2: ``a = 1 / sqrt(N k)`` where the k-th of N points is the first inside the box, ``-1 / N`` where none is.

    -1 altogether for a completion without points, or of another form, and where three of its points lie on one line (a way to sweep the
    screen without looking). So one right point earns 2, and of N wrong ones each costs less: guessing on is worth it while it may help.

    Args:
        column: of the prompts, that holds the box ``[x1, y1, x2, y2]``, in the unit that the model is to answer in.
        think: whether ``<think>...</think>`` goes before the list ``[{"point_2d": [x, y]}, ...]``. most: points beyond it are another
            form; null for 200.

    Paper: InfiGUI-G1, https://arxiv.org/abs/2508.05731 (AEPO's adaptive exploration reward; format and accuracy count 1 each, as in its
    code).

    Errors: UserError, also for a true box that is none.
    """
    if most is not None and not 1 <= most <= MOST:
        raise UserError(f"several_points.most: got {most}, takes 1 to {MOST}, or null")

    def score(text: str, answer: str) -> float:
        x1, y1, x2, y2 = _box(answer)
        points = _points(text, think)
        if not points or len(points) > (most or MOST) or three_on_a_line(points):
            return -1.0
        inside = [x1 <= x <= x2 and y1 <= y <= y2 for x, y in points]
        return 1 + (1 / math.sqrt(len(points) * (inside.index(True) + 1)) if any(inside) else -1 / len(points))

    scorer = against_answers("several_points", score, column)
    return replace(scorer, low=-1.0, high=2.0)


def on_a_line(first: tuple[float, float], second: tuple[float, float], third: tuple[float, float]) -> bool:
    """Whether three points lie on one line, by the area of their triangle; two equal points always do with a third."""
    (x1, y1), (x2, y2), (x3, y3) = first, second, third
    return math.isclose((y2 - y1) * (x3 - x1), (y3 - y1) * (x2 - x1))


def three_on_a_line(points: list[tuple[float, float]]) -> bool:
    """Whether any three points lie on one line: seen from one of them, two others are in one direction, or in opposite ones."""
    if len(points) < 3:
        return False
    for number, (x, y) in enumerate(points):
        others = points[number + 1 :]
        if (x, y) in others:
            return True
        others.sort(key=lambda other: math.atan2(other[1] - y, other[0] - x) % math.pi)
        if len(others) > 1 and any(on_a_line((x, y), one, other) for one, other in zip(others, [*others[1:], others[0]], strict=True)):
            return True
    return False


def _points(text: str, think: bool) -> list[tuple[float, float]] | None:
    """The points of a completion in its order; None where it has another form."""
    if think:
        match = THINK.fullmatch(text.strip())
        if match is None or not match[1].strip() or text.count("<think>") != 1 or text.count("</think>") != 1:
            return None
        text = match[2]
    value = json_in(text)
    if not isinstance(value, list):
        return None
    points = []
    for item in value:
        point = item.get("point_2d") if isinstance(item, dict) else None
        if not isinstance(point, list) or len(point) != 2 or not all(isinstance(v, (int, float)) and abs(v) < 1e9 for v in point):
            return None
        points.append((float(point[0]), float(point[1])))
    return points


def _box(answer: str) -> tuple[float, float, float, float]:
    try:
        boxes = boxes_in([json.loads(answer)])
    except ValueError:
        boxes = None  # said below
    if not boxes:
        raise UserError(f"several_points.column: got {answer[:80]!r}, takes a box [x1, y1, x2, y2]")
    return boxes[0].corners
