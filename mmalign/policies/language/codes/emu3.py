"""Emu3 (arXiv 2409.18869): codes are words of the model's vocabulary, a picture is lines of them, and its prompt says how many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.policies.language.codes.layouts import line_places, lines, token
from mmalign.policies.language.prompts.chat import Chat
from mmalign.types import UserError


class Emu3:
    """See ``layouts.Layout``. Codes are drawn where codes may stand, as ``prefix_allowed_tokens_fn`` has it in the model's own example;
    the ends of lines stand where they must. Without a prompt it reads the picture's start alone."""

    def __init__(self, model: Any, chat: Chat, size: tuple[int, int] | None):
        vq, mapping = model.model.vqmodel, model.vocabulary_mapping
        step = int(vq.spatial_scale_factor)
        if size is None or any(side < step or side % step for side in size):
            got = "none" if size is None else list(size)
            raise UserError(f"policy.size: got {got}, takes [height, width] of an image, multiples of {step} for {type(model).__name__}")
        self.vq, self.head = vq, model.get_output_embeddings()
        self.height, self.width = (side // step for side in size)
        self.shape, self.codes = (int(vq.config.out_channels), *size), int(vq.config.codebook_size)
        self.places, self.backbone = line_places(self.height, self.width), model.base_model
        self.end = mapping.eol_token_id
        ids = mapping.img2bpe
        if self.end is None or sorted(ids) != list(range(self.codes)):
            raise UserError(
                f"policy.of.model: its vocabulary_map names {len(ids)} codes and {'an' if self.end is not None else 'no'} end of line, "
                f"and its codebook has {self.codes}; takes one with '<|visual token 000000|>', ... and '<|extra_200|>'"
            )
        self.words = torch.tensor([ids[code] for code in range(self.codes)])
        words = chat.tokenizer
        between = words(f"{self.height}*{self.width}", add_special_tokens=False)["input_ids"]
        self.start = [token(chat, "boi_token"), *between, token(chat, "image_wrapper_token")]
        self.first = [] if words.bos_token_id is None else [words.bos_token_id]

    def behind(self, ids: list[int]) -> list[int]:
        return [*ids, *self.start]

    def unprompted(self, ids: list[int]) -> list[int]:
        return [*self.first, *self.start]

    def written(self, codes: Tensor) -> Tensor:
        return lines(self.words.to(codes.device)[codes], self.height, self.width, self.end)

    def logits(self, hidden: Tensor) -> Tensor:
        weight, bias = self.head.weight[self.words.to(hidden.device)], self.head.bias
        return torch.nn.functional.linear(hidden, weight, None if bias is None else bias[self.words.to(hidden.device)])

    def decode(self, codes: Tensor) -> Tensor:
        images: Tensor = self.vq.decode(codes.view(-1, self.height, self.width))
        return images

    def encode(self, images: Tensor) -> Tensor:
        sizes = torch.tensor([images.shape[-2:]]).expand(len(images), -1)
        grids = self.vq.encode(images, sizes, return_dict=True).image_tokens
        return torch.stack(list(grids)).flatten(1)
