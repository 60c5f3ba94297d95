"""Preference pairs of sentences: the base's own, ranked by a reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Natural, Seed
from mmalign.policies.transformers import transformers
from mmalign.records import Pair
from mmalign.types import UserError
from mmalign.worlds.text.base import text
from mmalign.worlds.text.data import WORDS, text_prompts
from mmalign.worlds.text.judges import text_plain

__all__ = ["text_pairs"]


def text_pairs(
    *, reward: Callable[..., Tensor] | None = None, prompts: Count = 128, groups: Count = 4, best_of: Count = 4,
    offset: Natural = 0, seed: Seed = 0,
) -> list[Pair]:  # fmt: skip
    """For each of ``prompts``, ``groups`` times: the best of ``best_of`` completions of the base, and the worst of them.

    Groups without a difference are ties, strength 0.5; completions without an end are left out. About ``prompts * groups`` pairs, the
    same for one seed.

    reward: what ranks them, ``text_plain`` by default. prompts: how many, those of ``text_prompts``. groups: of each prompt. best_of:
    completions in a group. offset: how many of the prompts to leave out first.

    Errors: UserError for fewer than two completions, no group, or more prompts than there are.
    """
    if groups < 1 or best_of < 2:
        raise UserError(f"text_pairs: got groups={groups}, best_of={best_of}, takes 1 or more, and 2 or more")
    rank = reward or text_plain()
    policy: Any = transformers(*text(), max_completion=WORDS - 1)  # room for the end of one that is cut there
    rollout = policy.sample(text_prompts(count=prompts, offset=offset), groups * best_of, torch.Generator().manual_seed(seed))
    scores = rank(rollout.outputs, rollout.prompts).tolist()
    pairs: list[Pair] = []
    for start in range(0, len(scores), best_of):
        ended = [row for row in range(start, start + best_of) if rollout.outputs[row].endswith(".")]
        if len(ended) > 1:  # one that was cut off would teach that sentences end there
            best, worst = max(ended, key=scores.__getitem__), min(ended, key=scores.__getitem__)
            strength = 0.5 if scores[best] == scores[worst] else 1.0
            fields = (rollout.outputs[best], rollout.outputs[worst], strength, f"pair {len(pairs)}")
            pairs.append(Pair(rollout.prompts[start], *fields, scores=(scores[best], scores[worst])))
    return pairs
