"""A policy's answers to prompts, for commands that make files of them: drawn in groups, or as a user gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.policies.language.scoring.completions import Completions
from mmalign.policies.transformers import TransformersPolicy
from mmalign.types import Policy, UserError

Cut = Literal["drop", "keep"]
"""What becomes of answers that came to no end."""
SEEDS = 2**31


def seeds_of(seed: int, start: int, count: int) -> list[int]:
    """Seeds of the rows from ``start`` on: a row has the same, whichever rows are asked for at once."""
    return [(seed * 1_000_003 + start + place) % SEEDS for place in range(count)]


def groups_of(policy: Policy, prompts: list[Any], group: int, rng: torch.Generator) -> list[list[tuple[Any, bool]]]:
    """Answers to each prompt, and whether each of them came to no end, where the policy can tell."""
    rollout = policy.sample(prompts, group, rng)
    pictures = isinstance(rollout.outputs, Tensor) and rollout.outputs.ndim in (4, 5)
    answers = list(rollout.outputs.detach().cpu()) if pictures else texts_of_outputs(rollout.outputs)
    endless = rollout.held.cut.tolist() if isinstance(rollout.held, Completions) else [False] * len(answers)
    rows = list(zip(answers, endless, strict=True))
    return [rows[start : start + group] for start in range(0, len(rows), group)]


def answered(policy: Policy, prompts: list[Any], seeds: list[int], call: Mapping[str, Any]) -> tuple[list[str], list[bool]]:
    """Answers, and which of them came to no end, where the policy can tell."""
    if isinstance(policy, TransformersPolicy):
        rollout = policy.traced(prompts, seeds, **call)
        return rollout.outputs, rollout.held.cut.tolist()
    return list(policy.generate(prompts, seeds, **call)), [False] * len(prompts)


def texts_of_outputs(answers: Any) -> list[str]:
    """Errors: UserError for outputs that are no texts."""
    if isinstance(answers, Tensor) or not all(isinstance(answer, str) for answer in answers):
        raise UserError("policy: does not answer in words; takes a language model")
    return list(answers)
