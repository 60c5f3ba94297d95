"""Whether a policy looks: how much likelier it finds its answers with their images than without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.conversations import has_media, without_media
from mmalign.types import UserError

ROWS = 16  # answers scored at once


@torch.no_grad()
def image_dependence(policy: Any, prompts: Sequence[Any], outputs: Sequence[str]) -> Tensor:
    """``[B]``: ``(log p(answer | prompt) - log p(answer | prompt without its images)) / tokens``, in nats.

    What is taken away is the image with its placeholder, so that the question stands alone. At 0 the answer owes nothing to its image,
    which is what mDPO found of preference training (https://arxiv.org/abs/2406.11839). NaN for a prompt without an image, an empty
    answer, and one that the policy cannot score.
    """
    gains = torch.full((len(prompts),), math.nan, dtype=torch.float64)
    rows = [row for row, prompt in enumerate(prompts) if has_media(prompt) and outputs[row].strip()]
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        answers = [outputs[row] for row in some]
        try:
            seeing = _per_token(policy, [prompts[row] for row in some], answers)
            blind = _per_token(policy, [without_media(prompts[row]) for row in some], answers)
        except UserError:  # words that the tokenizer reads back otherwise than they were said: not known, and no reason to stop a run
            continue
        gains[some] = seeing - blind
    return gains


def _per_token(policy: Any, prompts: list[Any], outputs: list[str]) -> Tensor:
    """``[B]`` mean log-probability of a token of each answer."""
    rollout = policy.encode(prompts, outputs, torch.arange(len(prompts)), torch.Generator().manual_seed(0))
    steps = policy.steps(rollout, torch.arange(len(prompts)))
    mask = steps.mask.cpu()
    return torch.where(mask, steps.log_probs.detach().double().cpu(), 0.0).sum(1) / mask.sum(1).clamp(min=1)
