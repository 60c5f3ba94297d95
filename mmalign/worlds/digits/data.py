"""The scans, their two disjoint halves, and how a prompt names a digit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.records import Thumb
from mmalign.types import UserError

__all__ = ["digit_prompts", "digits_real", "digits_scans"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = [f"a handwritten {word}" for word in WORDS]
NO_CLASS = 10  # the empty prompt, for classifier-free guidance


@functools.cache
def halves() -> dict[str, tuple[Tensor, Tensor]]:
    """``{"A": (images, labels), "B": (images, labels)}``: images ``[N, 1, 8, 8]`` float32 in 0..1, labels ``[N]`` int64.

    Split at random within each class with a fixed seed. scikit-learn orders the scans by writer, so a random split shares
    writers between halves but never an image.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(raw.target, dtype=torch.int64)
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    in_a = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        rows = shuffled[labels[shuffled] == digit]
        in_a[rows[: len(rows) // 2]] = True
    return {"A": (images[in_a], labels[in_a]), "B": (images[~in_a], labels[~in_a])}


def real(half: Literal["A", "B"]) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 8, 8]`` in 0..1 and labels ``[N]`` of one ``half``."""
    return halves()[half]


def digit_of(prompt: str) -> int:
    """The digit that a prompt names, as a word or a numeral; ``NO_CLASS`` for the empty prompt.

    Errors: UserError for a prompt that names none, or several.
    """
    if not prompt.strip():
        return NO_CLASS
    words = re.findall(r"[a-z]+|\d+", prompt.lower())
    digits = {WORDS.index(w) for w in words if w in WORDS} | {int(w) for w in words if w.isdigit() and len(w) == 1}
    if len(digits) != 1:
        raise UserError(f"prompt: got {prompt!r}, takes one digit, as a word or a numeral, such as {PROMPTS[3]!r}")
    return digits.pop()


def classes(prompts: list[str]) -> Tensor:
    """``[B]`` int64 digits of prompts."""
    return torch.tensor([digit_of(prompt) for prompt in prompts], dtype=torch.int64)


def digit_prompts(*, count: Count | None = None) -> list[str]:
    """``a handwritten zero`` to ``a handwritten nine``, the first of them.

    count: how many, 1 to 10; None for all.

    Errors: UserError for another number.

    Examples:
        >>> digit_prompts(count=2)
        ['a handwritten zero', 'a handwritten one']
    """
    if count is not None and not 1 <= count <= len(PROMPTS):
        raise UserError(f"digit_prompts.count: got {count}, takes 1 to {len(PROMPTS)}, or None for all")
    return PROMPTS[:count]


def digits_real() -> Callable[[Sequence[str], int], Tensor]:
    """Real scans of half B to show beside samples: ``(prompts, columns) -> [prompts, columns, 1, 8, 8]``."""

    def show(prompts: Sequence[str], columns: int) -> Tensor:
        images, labels = real("B")
        return torch.stack([images[labels == digit_of(prompt)][:columns] for prompt in prompts])

    return show


def digits_scans() -> list[Thumb]:
    """Real scans of half A as good outputs of their prompts, by their right names: what a classifier tells samples from."""
    images, labels = real("A")
    rows = zip(images, labels.tolist(), strict=True)
    return [Thumb(PROMPTS[label], image, 1.0, f"scan {number}") for number, (image, label) in enumerate(rows)]
