"""Any reward on texts, asked about every part of a text by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import torch

from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.completions import texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

UNITS = {
    "word": re.compile(r"\S+"),
    "line": re.compile(r"[^\n]*\S[^\n]*"),
    "sentence": re.compile(  # a run of marks is looked at once, from its start: each of its places would be quadratic
        r"(?:[.!?]++|\S)(?:(?<=[.!?]{2})(?=\s|$)|.*?(?:(?<![.!?])[.!?]++(?=\s|$)|(?=\n)|[。！？]++|$))", re.DOTALL
    ),
}


def by_segment(reward: Callable[..., Any], *, unit: Literal["sentence", "line", "word"] = "sentence") -> Callable[..., Any]:
    """Scores of the parts of each text, ``(start, end, score)``: ``reward`` is asked about each part as if it were the whole.

    What the parts earn arrives at the steps that end them for methods that read rewards of steps (``fine_grained_rlhf``); for others their
    sum is the reward of the text. reward: of texts, asked about each part. unit: ``sentence`` (up to . ! ? or a line's end), ``line`` or
    ``word`` (between spaces). Paper: Fine-Grained Human Feedback Gives Better Rewards for Language Model Training,
    https://arxiv.org/abs/2306.01693, whose reward models see the text up to each part and not the part alone.

    Errors: UserError for another unit, and for another number of scores than parts.

    Examples:
        >>> short = mm.rewards.by_segment(mm.rewards.length(2))
        >>> short(["I see. It is not so."], ["Is it?"])  # characters 0 to 6 and 7 to 20
        [[(0, 6, 0.0), (7, 20, -1.0)]]
    """
    if unit not in UNITS:
        raise UserError(f"by_segment.unit: got {unit!r}, takes {', '.join(UNITS)}")

    def scores(outputs: Any, prompts: list[Any], **columns: Any) -> list[list[tuple[int, int, float]]]:
        whole = texts("by_segment", outputs, prompts)
        parts = [(row, match.start(), match.end()) for row, text in enumerate(whole) for match in UNITS[unit].finditer(text)]
        scored: list[list[tuple[int, int, float]]] = [[] for _ in whole]
        if not parts:
            return scored
        columns_of_parts = {name: [values[row] for row, _, _ in parts] for name, values in accepted(reward, columns).items()}
        answer = reward([whole[row][start:end] for row, start, end in parts], [prompts[row] for row, _, _ in parts], **columns_of_parts)
        values = torch.as_tensor(answer, dtype=torch.float64).tolist()
        if len(values) != len(parts):
            raise UserError(f"by_segment.reward: returned {len(values)} scores, takes one for each of {len(parts)} parts")
        for (row, start, end), value in zip(parts, values, strict=True):
            scored[row].append((start, end, value))
        return scored

    return Scorer("by_segment", scores, reads=columns_read(reward))
