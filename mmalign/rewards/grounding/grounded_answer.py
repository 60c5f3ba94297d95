"""An answer with where it was seen: boxes of the objects, the reasoning, the answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import NotNegative, Share
from mmalign.arguments.reads import columns_read
from mmalign.conversations import question
from mmalign.rewards._shared.boxes import Box, overlaps, plain
from mmalign.rewards._shared.completions import answers, once_each, tagged, texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

FORM = ("location", "think", "answer")
BRACKETS = re.compile(r"\[([^\[\]]*)\]")
NUMBER = re.compile(r"-?(?:\d{1,9}(?:\.\d*)?|\.\d+)")


def grounded_answer(
    *, by: Literal["overlap", "center"] = "overlap", least: Share = 0.5, logic: Callable[..., Any] | None = None,
    weights: Mapping[str, NotNegative] | None = None, apart: bool = False, column: Column = "answer",
) -> Scorer:  # fmt: skip
    """The weighted sum of scores in 0..1: ``location``, ``answer``, ``format`` and, if asked for, ``logic``, of completions of the form::

        <location>car: [10, 20, 30, 40], bus: [...]</location> <think>...</think> <answer>...</answer>

    location: the part of the true objects that a box of the same name hits: ``overlap`` (intersection over union) above ``least``; or
    ``center``, ``2 c - 1 > least`` with ``c = sqrt((1 - dx) (1 - dy))``, d the distance of the centers over half of the true box's side.
    answer: 1 for the true one, but for case, articles and punctuation. format: 1 for that form and nothing else. logic: what a reward in
    0..1 says of the reasoning and the answer that it came to, with the question alone, no picture: whether the one follows from the
    other, right or wrong; 0, and nobody is asked, where a completion has not both.

    Args:
        by: how a box is compared with the true one, ``overlap`` or ``center``. least: what it has to be above, 0 to below 1.
        column: of the prompts, that holds ``{"answer": ..., "boxes": {name: [x1, y1, x2, y2]}}``; without boxes the
            location is missing, and so is the reward, unless its weight is 0.
        logic: a reward of words, such as ``{use: judge, criterion: whether the answer follows from the reasoning, low: 0, high: 1, ...}``.
            None: no such score.
        weights: of ``location``, ``answer``, ``format`` and ``logic``, 1 by default. apart: they as parts in place of their sum.

    Paper: SURDS, https://arxiv.org/abs/2411.13112. Deviations: there a language model finds the answer from the reasoning (*recalled*);
    here, whatever reward one has judges both. Its code measures ``dx, dy`` in the drawn box's sides, so that a large box is near
    everything.

    Errors: UserError, also for true answers of another shape, and a ``logic`` that answers parts or is outside 0..1.
    """
    if by not in ("overlap", "center") or not 0 <= least < 1:
        raise UserError(f"grounded_answer: got by={by!r}, least={least}, takes overlap or center, and 0 to below 1")
    names = ("location", "answer", "format", *(() if logic is None else ("logic",)))
    weight = {**dict.fromkeys(names, 1.0), **(weights or {})}
    if len(weight) > len(names) or min(weight.values()) < 0:
        raise UserError(f"grounded_answer.weights: got {dict(weights or {})}, takes {', '.join(names)}, 0 or more each")
    if isinstance(logic, Scorer) and (logic.low, logic.high) != (0.0, 1.0):
        raise UserError(
            f"grounded_answer.logic: {logic.name} scores {logic.low} to {logic.high}, takes a reward of 0 to 1 (low: 0, high: 1)"
        )
    find = answers("grounded_answer", column)

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        rows = []
        for text, column_text in zip(texts("grounded_answer", outputs, prompts), find(prompts, columns), strict=True):
            answer, boxes = _true(column_text)
            rows.append(
                [
                    _located(text, boxes, by, least),
                    float(plain(tagged(text, "answer") or "") == plain(answer)),
                    float(once_each(text, FORM)),
                ]
            )
        table = torch.tensor(rows, dtype=torch.float64).view(-1, 3)
        if logic is not None:
            said = _follows(logic, texts("grounded_answer", outputs, prompts), prompts, columns)
            table = torch.cat([table, said[:, None]], dim=1)
        if apart:
            return dict(zip(weight, table.T, strict=True))
        return sum(weight[name] * values for name, values in zip(weight, table.T, strict=True) if weight[name])

    reads = frozenset({column}) | (frozenset() if logic is None else columns_read(logic))
    return Scorer("grounded_answer", score, low=0.0, high=sum(weight.values()), reads=reads)


def _follows(logic: Callable[..., Any], completions: list[str], prompts: list[Any], columns: Mapping[str, Any]) -> Tensor:
    """What ``logic`` says of each completion's reasoning and answer, ``[B]``; 0 where there is none."""
    said = [(tagged(text, "think") or "", tagged(text, "answer") or "") for text in completions]
    asked = [row for row, (reason, answer) in enumerate(said) if reason.strip() and answer.strip()]
    scores = torch.zeros(len(prompts), dtype=torch.float64)
    if not asked:
        return scores
    words = [f"{said[row][0].strip()}\nAnswer: {said[row][1].strip()}" for row in asked]
    its = {name: [values[row] for row in asked] for name, values in accepted(logic, columns).items()}
    known = torch.as_tensor(logic(words, [question(prompts[row]) for row in asked], **its)).double().cpu()
    if known.shape != (len(asked),) or bool(((known < 0) | (known > 1)).any()):
        raise UserError(f"grounded_answer.logic: got {known.flatten()[:4].tolist()}, takes one number in 0..1 for each row")
    return scores.index_copy(0, torch.tensor(asked), known)


def center_closeness(drawn: Box, true: Box) -> float:
    """``sqrt((1 - dx) (1 - dy))``, d the distance of the centers over half of the true box's side, at most 1: 1 at the center."""
    apart = []
    for low, high in ((0, 2), (1, 3)):
        half = (true.corners[high] - true.corners[low]) / 2
        middle = [(box.corners[low] + box.corners[high]) / 2 for box in (drawn, true)]
        apart.append(min(1.0, abs(middle[0] - middle[1]) / half))
    return math.sqrt((1 - apart[0]) * (1 - apart[1]))


def _located(text: str, true: list[Box], by: str, least: float) -> float:
    if not true:
        return math.nan
    drawn = {plain(box.label): box for box in _named(tagged(text, "location") or "")}
    hits = 0
    for box in true:
        box_drawn = drawn.get(plain(box.label))
        if box_drawn is not None:
            near = float(overlaps([box_drawn], [box])[0, 0]) if by == "overlap" else 2 * center_closeness(box_drawn, box) - 1
            hits += near > least
    return hits / len(true)


def _named(text: str) -> list[Box]:
    """The boxes of ``name: [x1, y1, x2, y2]``."""
    boxes, place = [], 0
    for match in BRACKETS.finditer(text):
        before, place = text[place : match.start()].rstrip(), match.end()
        name = re.split(r"[\[\]:]", before[:-1])[-1].lstrip(" ,;\n") if before.endswith(":") else ""
        numbers = [number.strip() for number in match[1].split(",")]
        if name and len(numbers) == 4 and all(NUMBER.fullmatch(number) for number in numbers):
            x1, y1, x2, y2 = (float(number) for number in numbers)
            if x1 < x2 and y1 < y2:
                boxes.append(Box((x1, y1, x2, y2), name))
    return boxes


def _true(text: str) -> tuple[str, list[Box]]:
    try:
        row = json.loads(text)
        boxes = [Box(tuple(float(corner) for corner in corners), name) for name, corners in row.get("boxes", {}).items()]  # type: ignore[arg-type]
        if any(len(box.corners) != 4 or box.corners[0] >= box.corners[2] or box.corners[1] >= box.corners[3] for box in boxes):
            raise ValueError("corners")
        return str(row["answer"]), boxes
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        takes = '{"answer": ..., "boxes": {name: [x1, y1, x2, y2]}}'
        raise UserError(f"grounded_answer.column: got {text[:80]!r}, takes {takes}") from error
