"""The words that a distribution finds likely, and a table of such words in bits, so that rows keep what they were drawn from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__: list[str] = []  # no policy


def likely(probs: Tensor, top_p: float, least: int = 1) -> Tensor:
    """``[R, V]`` bool: of each row the likeliest words that ``top_p`` falls on, the one that crosses the border too; ``least`` at least.

    Examples:
        >>> probs = torch.tensor([[0.1, 0.5, 0.3, 0.1]])
        >>> likely(probs, 0.6).int().tolist(), likely(probs, 0.2, least=2).int().tolist()
        ([[0, 1, 1, 0]], [[0, 1, 1, 0]])
    """
    order = probs.sort(dim=-1, descending=True)
    inside = order.values.cumsum(-1) - order.values < top_p
    inside[..., :least] = True
    return torch.zeros_like(inside).scatter(-1, order.indices, inside)


def packed(words: Tensor) -> Tensor:
    """``[..., V]`` bool as bits, ``[..., W]`` uint8: W is V / 8, rounded up."""
    filled = functional.pad(words, (0, -words.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (filled.to(torch.uint8) << _places(words)).sum(-1, dtype=torch.uint8)


def unpacked(bits: Tensor, width: int) -> Tensor:
    """``[..., V]`` bool of the bits ``[..., W]``, V being the width.

    Examples:
        >>> words = torch.tensor([[True, False, True, True, False, False, False, False, True]])
        >>> packed(words).tolist(), bool((unpacked(packed(words), 9) == words).all())
        ([[13, 1]], True)
    """
    return (bits.unsqueeze(-1) >> _places(bits) & 1).bool().flatten(-2)[..., :width]


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
