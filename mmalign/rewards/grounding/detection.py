"""Boxes that a completion draws, against the true ones: format, recall and precision, with thresholds that rise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Natural, Proportion
from mmalign.rewards._shared.boxes import Box, boxes_in, json_in, matched
from mmalign.rewards._shared.completions import answers, texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def detection(
    *, switch_at: Natural | None = None, thresholds: tuple[Proportion, Proportion, Proportion] | None = None, labels: bool = False,
    apart: bool = False, column: Column = "boxes",
) -> Scorer:  # fmt: skip
    """Reward in 0..1: the mean of format, recall and precision of the boxes in a completion.

    - Boxes are matched one to one with the true ones so that their overlaps (intersection over union, ``q_i``) are largest in sum.
    - format: 1 for a JSON list of ``{"bbox_2d": [x1, y1, x2, y2], "label": ...}``; where there is nothing to find, 1 for anything else.
    - recall: the part of the true boxes with ``q_i`` of ``match`` or above.
    - precision: ``sum_i s(q_i) / number of boxes drawn``, with ``s(q) = 0`` below ``low``, 1 above ``high``, and q between.
    - recall then goes through s too, with 0.5 and 0.75, where thresholds are on. Without true boxes both are 1 for no box, else 0.

    Args:
        column: of the prompts, that holds each one's true boxes: a list of objects as above, or of four numbers each; in the unit that
            the model is to answer in.
        switch_at: the training step from which ``match, low, high`` are .75, .75, .9 instead of .5, .5, .75.
        thresholds: ``(match, low, high)`` all along, in place of that. Neither: .5, 0, 1: nothing is cut off.
        labels: whether a match needs the true label (not so in the paper, to which wrong labels are rare).
        apart: answer with ``format``, ``recall`` and ``precision`` as parts, too, in place of their mean.

    Paper: Vision-R1, https://arxiv.org/abs/2503.18013; numbers and stages as in its code (there the switch is at step 1500).
    Deviations: the code matches by L1 in pixels, label and generalised overlap, and takes the last for q; here both are the overlap.
    A completion is never missing: what cannot be read as boxes is a wrong answer.

    Errors: UserError, also for true boxes that are none.
    """
    _refuse(switch_at, thresholds)
    find = answers("detection", column)
    stage = [0]

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        match, low, high = thresholds or ((0.5, 0.0, 1.0) if switch_at is None else ((0.5, 0.5, 0.75), (0.75, 0.75, 0.9))[stage[0]])
        graded = thresholds is not None or switch_at is not None
        rows = []
        for text, answer in zip(texts("detection", outputs, prompts), find(prompts, columns), strict=True):
            rows.append(_scores(text, _true("detection", answer), match=match, low=low, high=high, graded=graded, labels=labels))
        table = torch.tensor(rows, dtype=torch.float64).view(-1, 3)
        return dict(zip(("format", "recall", "precision"), table.T, strict=True)) if apart else table.mean(1)

    def at(step: int) -> None:
        stage[0] = int(switch_at is not None and step >= switch_at)

    return Scorer("detection", score, low=0.0, high=1.0, at=at, reads=frozenset({column}))


def _scores(text: str, true: list[Box], *, match: float, low: float, high: float, graded: bool, labels: bool) -> list[float]:
    value = json_in(text)
    drawn = boxes_in(value) or []
    formed = isinstance(value, list) and bool(value) and boxes_in(value) is not None and all(_labelled(item) for item in value)
    if not true:
        return [float(not formed), float(not drawn), float(not drawn)]
    if not drawn:
        return [float(formed), 0.0, 0.0]
    q = matched(drawn, true, labels=labels)
    recall = float((q >= match).sum()) / len(true)
    cut = torch.where(q < low, 0.0, torch.where(q > high, 1.0, q))
    return [float(formed), _cut(recall, 0.5, 0.75) if graded else recall, float(cut.sum()) / len(drawn)]


def _cut(value: float, low: float, high: float) -> float:
    if value < low:
        return 0.0
    return 1.0 if value > high else value


def _labelled(item: Any) -> bool:
    return isinstance(item, Mapping) and "label" in item


def _true(name: str, answer: str) -> list[Box]:
    try:
        boxes = boxes_in(json.loads(answer))
    except ValueError:
        boxes = None  # said below
    if boxes is None:
        raise UserError(f"{name}.column: got {answer[:80]!r}, takes a list of boxes: [{{bbox_2d: [x1, y1, x2, y2], label: ...}}]")
    return boxes


def _refuse(switch_at: int | None, thresholds: tuple[float, float, float] | None) -> None:
    if switch_at is not None and thresholds is not None:
        raise UserError("detection: got switch_at and thresholds, takes at most one of them")
    if switch_at is not None and switch_at < 0:
        raise UserError(f"detection.switch_at: got {switch_at}, takes a step of 0 or more")
    if thresholds is not None and (len(thresholds) != 3 or not (0 <= thresholds[0] <= 1 and 0 <= thresholds[1] <= thresholds[2] <= 1)):
        raise UserError(f"detection.thresholds: got {thresholds}, takes (match, low, high) in 0..1, low up to high")
