"""A medium by reference, and what tells one from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.media.sources import is_address

KINDS = ("image", "video")
ONE = {"image": "an image", "video": "a video"}


class Medium(NamedTuple):
    """An image or a video by reference.

    kind: ``image`` or ``video``. source: as ``media.picture`` and ``media.footage`` take it. change: see ``ablation.py``.
    """

    kind: str
    source: Any
    change: Any = None

    def key(self) -> tuple[Any, ...]:
        """What tells it from others: a file by its path, size and time, anything else by its bytes."""
        if isinstance(self.source, (str, Path)) and not is_address(self.source):
            stat = os.stat(self.source) if os.path.isfile(self.source) else None
            return self.kind, str(self.source), stat and (stat.st_size, stat.st_mtime_ns), self.change
        return self.kind, str(self.source) if isinstance(self.source, str) else _hash(canonical_bytes(self.source)), self.change


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def canonical_bytes(value: Any) -> bytes:
    """What a medium is told apart by, whatever it came as."""
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return canonical_bytes(value.get("bytes") or str(value.get("path")).encode())
    if isinstance(value, (list, tuple)):
        return b"".join(canonical_bytes(part) for part in value)
    return bytes(value) if isinstance(value, (bytes, bytearray, memoryview)) else f"{value.mode} {value.size}".encode() + value.tobytes()
