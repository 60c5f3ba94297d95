"""How a class of transformers writes an image: as which tokens, in which order, and by which head.

A code is a number of the model's own codebook, 0 and up. Tokens are what the model reads: ids of its words, and codes as ids of their
own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from mmalign.policies.language.prompts.chat import Chat
from mmalign.types import UserError


class Layout(Protocol):
    """An image of one size as T codes.

    backbone: reads ids and tokens of codes, and gives hidden states. shape: of an image, ``(C, H, W)``. codes: how many the codebook has.
    places: ``[T]``, which of the tokens of an image each code is; the others are always the same (ends of lines).
    """

    backbone: nn.Module
    shape: tuple[int, int, int]
    codes: int
    places: Tensor

    def behind(self, ids: list[int]) -> list[int]:
        """A prompt's ids, and what the model reads before an image begins."""

    def unprompted(self, ids: list[int]) -> list[int]:
        """The same without what the prompt says, for guidance."""

    def written(self, codes: Tensor) -> Tensor:
        """Codes ``[R, t]``, T or fewer, as the tokens ``[R, L]`` that the model reads, up to the last of them."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[N, H]`` -> one number for each code, ``[N, codes]``."""

    def decode(self, codes: Tensor) -> Tensor:
        """``[R, T]`` -> images ``[R, C, H, W]`` as the model's decoder has them, about -1..1."""

    def encode(self, images: Tensor) -> Tensor:
        """Images as its encoder takes them -> ``[R, T]``."""


def token(chat: Chat, name: str, text: str = "") -> int:
    """The id of a special token by the tokenizer's name for it (``boi_token``), or by its text. Errors: UserError where there is none."""
    word = text or getattr(chat.tokenizer, name, None)
    number = None if word is None else chat.tokenizer.convert_tokens_to_ids(word)
    if number is None or number == chat.tokenizer.unk_token_id:
        raise UserError(f"policy.of.tokenizer: has no {text or name}, which stands around an image; takes the model's own tokenizer")
    return int(number)


def lines(codes: Tensor, height: int, width: int, end: int) -> Tensor:
    """``[R, t]`` codes of a picture, line by line, with ``end`` behind each whole line but the last code: ``[R, L]``."""
    count = codes.shape[1]
    filled = nn.functional.pad(codes, (0, height * width - count)).view(-1, height, width)
    whole = nn.functional.pad(filled, (0, 1), value=end).flatten(1)
    return whole[:, : count + (count - 1) // width]


def line_places(height: int, width: int) -> Tensor:
    """``[height * width]``: where the codes of a picture stand among its tokens, with one more behind each line."""
    number = torch.arange(height * width)
    return number + number // width
