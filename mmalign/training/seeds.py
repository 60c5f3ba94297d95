"""Random streams that need no state: a generator for each purpose, seeded by what it is for."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *purpose: int | str) -> torch.Generator:
    """A CPU generator that depends on ``seed`` and ``purpose`` alone, so that a resumed run draws what it would have drawn."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
