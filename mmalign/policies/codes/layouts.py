"""How a class of transformers writes an image: as which tokens, in which order, and by which head.

A code is a number of the model's own codebook, 0 and up. Tokens are what the model reads: ids of its words, and codes as ids of their
own. ``janus.py`` and ``emu3.py`` are the classes that can both write codes and decode them. Others see images as codes, and cannot show
what they would write: Chameleon's has no decoder in transformers, which also bans its codes; GLM-Image's decoder is a pipeline of diffusers.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmalign.policies.language.chat import Chat
from mmalign.types import UserError

CANNOT = {
    "chameleon": "transformers has no decoder of its codes, and its forward bans them",
    "glm_image": "its codes are decoded by a pipeline of diffusers, which the policy diffusers takes",
}


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


def layout_of(model: Any, chat: Chat, size: tuple[int, int] | None) -> Layout:
    """How a model writes images. size: height and width, of a model that writes several.

    Errors: UserError for a model that makes no images, and for a size that it does not make.
    """
    from mmalign.policies.codes import emu3, janus

    kind = str(model.config.model_type)
    if kind in CANNOT:
        raise UserError(f"policy.of.model: {type(model).__name__} makes no images: {CANNOT[kind]}; takes Janus or Emu3")
    if kind == "janus":
        return janus.Janus(model, chat, size)
    if type(model).__name__ == "Emu3ForConditionalGeneration":
        return emu3.Emu3(model, chat, size)
    raise UserError(f"policy.of.model: {type(model).__name__} makes no images; takes a model that writes them as codes: Janus or Emu3")


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
