"""What stands in for a reward while a config is rehearsed: the same interface, no weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def stand_in(name: str) -> Scorer:
    """Reward in 0..1 of anything: a sigmoid of a fixed pattern's mean over the output, or of a text's letters.

    Always the same for the same outputs, different for different ones, and differentiable in tensors. name: of the reward it
    stands for, which fixes the pattern. It says nothing of quality.

    Errors: UserError for other outputs than one for each prompt.
    """
    seed = zlib.crc32(name.encode())

    def score(outputs: Any, prompts: list[str], **columns: Any) -> Tensor:
        if len(outputs) != len(prompts):
            raise UserError(f"{name}: got {len(outputs)} outputs for {len(prompts)} prompts, takes one for each")
        if not isinstance(outputs, Tensor):
            return torch.tensor([zlib.crc32(repr(output).encode(), seed) / 2**32 for output in outputs])
        flat = outputs.float().flatten(1)
        pattern = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(flat.device)
        return (10 * flat @ pattern / flat.shape[1] ** 0.5).sigmoid()

    return Scorer(name, score, differentiable=True, low=0.0, high=1.0)


def stand_in_of_pairs(name: str) -> Callable[..., Tensor]:
    """An oracle of pairs that stands for one on a server: Bradley-Terry's probabilities of the stand-in's scores."""
    scorer = stand_in(name)

    def oracle(outputs: Any, prompts: list[Any], group: Tensor, **columns: Any) -> Tensor:
        scores = scorer(outputs, prompts).double()
        return (scores[:, None] - scores[None, :]).sigmoid()

    return oracle
