"""Janus and Janus-Pro (arXiv 2410.13848, 2501.17811): codes have embeddings and a head of their own, and a picture has one size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.language.codes.layouts import token
from mmalign.policies.language.prompts.chat import Chat
from mmalign.types import UserError


class Janus:
    """See ``layouts.Layout``. Without a prompt it reads as many tokens, all ``pad`` but the first and the image's start, as its own
    ``generate`` does."""

    def __init__(self, model: Any, chat: Chat, size: tuple[int, int] | None):
        parts, vq = model.model, model.config.vq_config
        side = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)
        if size is not None and tuple(size) != (side, side):
            raise UserError(f"policy.size: got {list(size)}, and {type(model).__name__} makes images of {side} x {side}; takes no size")
        self.parts, self.shape, self.codes = parts, (int(vq.out_channels), side, side), int(vq.num_embeddings)
        self.places = torch.arange(vq.num_patches**2)
        self.backbone = Reader(model)
        self.start = token(chat, "boi_token")
        words = chat.tokenizer
        self.pad, self.kept = words.pad_token_id, {words.bos_token_id, self.start}

    def behind(self, ids: list[int]) -> list[int]:
        return [*ids, self.start]

    def unprompted(self, ids: list[int]) -> list[int]:
        if self.pad is None:
            raise UserError("policy.guidance: the tokenizer has no pad_token, which stands where a prompt is taken away; takes 1, or one")
        return [number if number in self.kept else self.pad for number in ids]

    def written(self, codes: Tensor) -> Tensor:
        return codes + self.backbone.words

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.parts.generation_head(hidden)
        return logits

    def decode(self, codes: Tensor) -> Tensor:
        images: Tensor = self.parts.vqmodel.decode(codes)
        return images

    def encode(self, images: Tensor) -> Tensor:
        codes: Tensor = self.parts.vqmodel.encode(images, return_dict=True).image_tokens
        return codes.view(len(images), -1)


class Reader(nn.Module):
    """The model's own, of ids: those from ``words`` on are codes."""

    words: int

    def __init__(self, model: Any):
        super().__init__()
        self.config = model.config
        self.words = int(model.get_input_embeddings().weight.shape[0])
        self.__dict__["model"] = model  # not a submodule: its parameters have one name only

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, **more: Any) -> Any:
        """As the model's own."""
        model, codes = self.__dict__["model"], input_ids >= self.words
        embedded = model.get_input_embeddings()(input_ids.masked_fill(codes, 0))
        if bool(codes.any()):
            drawn = model.prepare_embeddings_for_image_generation((input_ids - self.words).clamp(min=0))
            embedded = torch.where(codes.unsqueeze(-1), drawn.to(embedded), embedded)
        return model.base_model(inputs_embeds=embedded, attention_mask=attention_mask, position_ids=position_ids, **more)
