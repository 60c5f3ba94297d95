"""Rows that a language model sampled, as ids that can be kept, and scored again in a later step or another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.types import Rollout


def kept(policy: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Ids ``[B, T]`` int64 and the length ``[B]`` of each row; with its prompt and its mask all that it is scored from."""
    return rollout.held.tokens, rollout.held.lengths


def revived(policy: Any, prompts: Sequence[Any], tokens: Tensor, lengths: Tensor, mask: Tensor) -> Rollout:
    """The rows again. prompts: of each row, what it was sampled for. ``log_probs`` are NaN: nobody asked what sampled them."""
    encoded = [policy.room.prompt(prompt, number) for number, prompt in enumerate(prompts)]
    return policy.table(encoded, torch.arange(len(encoded)), tokens, lengths, mask, sources=list(prompts), outputs=[""] * len(encoded))  # type: ignore[no-any-return]
