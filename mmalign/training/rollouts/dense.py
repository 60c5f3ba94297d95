"""Scores of parts of an output, words or sentences, brought to the steps that wrote them.

A reward gives them as a list of ``(start, end, score)`` for each output, in characters of its text, the end left out; None, or a score
that is NaN, says that the output could not be judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Rollout, UserError

Parts = list[list[tuple[int, int, float]] | None]


def is_parts(answer: Any) -> bool:
    """Whether a reward has answered with scores of parts."""
    rows = answer if isinstance(answer, (list, tuple)) else ()
    return any(isinstance(row, (list, tuple)) for row in rows) and all(row is None or isinstance(row, (list, tuple)) for row in rows)


def checked(who: str, answer: Sequence[Any], outputs: Sequence[Any]) -> Parts:
    """The answer for each output. Errors: UserError for another number of them, and for what is no part of its output."""
    if len(answer) != len(outputs):
        raise UserError(f"{who}: returned parts of {len(answer)} outputs, takes {len(outputs)}")
    parts: Parts = []
    for output, row in zip(outputs, answer, strict=True):
        if not isinstance(output, str):
            raise UserError(f"{who}: scores parts of an output that is a {type(output).__name__}, takes texts")
        if odd := [part for part in row or () if not _is_part(part)]:
            raise UserError(f"{who}: returned {odd[0]!r} for a part of an output, takes (start, end, score)")
        row_parts = None if row is None else [(int(start), int(end), float(score)) for start, end, score in row]
        for start, end, score in row_parts or []:
            if not 0 <= start < end <= len(output) or math.isinf(score):
                raise UserError(f"{who}: returned ({start}, {end}, {score}) for an output of {len(output)} characters")
        parts.append(row_parts)
    return parts


def _is_part(part: Any) -> bool:
    """Whether it is three numbers."""
    return isinstance(part, (list, tuple)) and len(part) == 3 and all(isinstance(number, (Real, Tensor)) for number in part)


def totals(parts: Parts) -> Tensor:
    """The sum of each output's scores, ``[B]`` float64; NaN where it could not be judged, 0 for one without parts."""
    sums = [math.nan if row is None else math.fsum(score for _, _, score in row) for row in parts]
    return torch.tensor(sums, dtype=torch.float64)


def table(parts: Mapping[str, Parts], weights: Mapping[str, float], rollout: Rollout) -> Tensor:
    """``[B, T]`` float64: every score, times its reward's weight (1 by default), at the last live step that wrote some of its part.

    0 where nothing is scored, and in rows that could not be judged. Errors: UserError for a rollout whose steps write no text.
    """
    if rollout.spans is None:
        raise UserError(f"reward {next(iter(parts))}: scores parts of outputs; takes a policy whose steps are tokens of a text")
    scores = torch.zeros(rollout.mask.shape, dtype=torch.float64)
    spans, live = rollout.spans(), rollout.mask.tolist()
    for name, rows in parts.items():
        for row, scored in enumerate(rows):
            steps = [(step, start) for step, (start, _) in enumerate(spans[row]) if live[row][step]]
            for _, end, score in scored or []:
                before = [step for step, start in steps if start < end]
                if steps and not math.isnan(score):
                    scores[row, before[-1] if before else steps[0][0]] += weights.get(name, 1.0) * score
    return scores
