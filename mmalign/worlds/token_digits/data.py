"""Prompts that hold a real scan, for teacher forcing."""

from __future__ import annotations

from typing import Any

import torch

from mmalign.arguments.ranges import Count, Seed
from mmalign.worlds.digits.data import PROMPTS, real

__all__ = ["token_digits_scans"]


def token_digits_scans(*, count: Count = 200, seed: Seed = 0) -> list[list[dict[str, Any]]]:
    """Conversations of one turn: what a digit is called, and a scan of half A ``[1, 8, 8]`` that shows it, by its right name.

    count: of scans, without repeats as far as there are so many. seed: which.

    Examples:
        >>> turn = token_digits_scans(count=2)[0][0]
        >>> turn["role"], turn["content"][1]["image"].shape
        ('user', torch.Size([1, 8, 8]))
    """
    images, labels = real("A")
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    parts = [[{"type": "text", "text": PROMPTS[int(labels[row])]}, {"type": "image", "image": images[row]}] for row in rows]
    return [[{"role": "user", "content": part}] for part in parts]
