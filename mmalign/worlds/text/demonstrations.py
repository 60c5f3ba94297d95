"""What a prompt's own sentence goes on to say, as a demonstration: how far a completion is from it, and how much plainer it is."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.worlds.text.data import START, sentences
from mmalign.worlds.text.judges import PLAIN, text_plain

__all__ = ["text_demonstration"]


def text_demonstration(*, words: Count = PLAIN) -> Callable[..., dict[str, Tensor]]:
    """Two parts of a prompt of ``text_prompts``: what a method needs that weighs its rows by a demonstration, as ``grpo_s`` does.

    ``difference``, 0..1: one minus the cosine of the words' counts, of the completion and of the demonstration. ``gap``: by how much
    the demonstration's reward, ``text_plain(words=words)``, is above the completion's. Both NaN for a prompt that begins no sentence.

    words: as in ``text_plain``.
    """
    plain = text_plain(words=words)

    def reward(outputs: Any, prompts: list[str], **_: Any) -> dict[str, Tensor]:
        demonstrations = [_demonstrations().get(prompt) for prompt in prompts]
        pairs = zip(outputs, demonstrations, strict=True)
        difference = [math.nan if demonstration is None else 1 - _cosine(output, demonstration) for output, demonstration in pairs]
        gap = plain([demonstration or "" for demonstration in demonstrations], prompts) - plain(outputs, prompts)
        known = torch.tensor([demonstration is not None for demonstration in demonstrations])
        return {"difference": torch.tensor(difference, dtype=torch.float64), "gap": torch.where(known, gap, math.nan)}

    return reward


@functools.cache
def _demonstrations() -> dict[str, str]:
    """The first three words of a sentence -> the rest of the first one that has them."""
    rests: dict[str, str] = {}
    for line in sentences("judge"):
        words = line.split()
        rests.setdefault(" ".join(words[:START]), " ".join(words[START:]))
    return rests


def _cosine(first: str, second: str) -> float:
    """Of the counts of two texts' words; 0 where one has none."""
    one, two = Counter(first.split()), Counter(second.split())
    size = math.sqrt(sum(count**2 for count in one.values()) * sum(count**2 for count in two.values()))
    return min(1.0, sum(count * two[word] for word, count in one.items()) / size) if size else 0.0
