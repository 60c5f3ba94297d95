"""Reward models made of a Qwen2-VL and a head that reads special tokens: HPSv3 and VideoReward, from their published files.

The packages that come with them pin a transformers of their own; here the same weights go into today's. Pictures are resized and cut
into patches in torch, so that a gradient goes through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.matching import reading, refuse_length
from mmalign.media.preprocessing import standard
from mmalign.rewards._models.weights import aligned, device_of, filled
from mmalign.types import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class QwenHead:
    """The model, its tokenizer, its head as (weight, bias or None) pairs with ReLU between them, and the ids of the tokens it reads."""

    model: Any
    tokenizer: Any
    layers: Sequence[tuple[Tensor, Tensor | None]]
    reads: Sequence[int]
    instruction: str
    patch: int
    merge: int
    depth: int

    def score(self, frames: Tensor, prompt: str, *, pixels: tuple[int, int], moving: bool) -> Tensor:
        """``[tokens, outputs]`` float32: what the head says at each token it reads; frames ``[F, 3, H, W]`` in 0..1.

        pixels: the least and the most pixels of a frame. moving: a video, whose frames go in pairs; or an image, one frame.
        """
        place, config = self.layers[0][0].device, self.model.config
        patches, grid = self.patches(frames.to(place), pixels)
        kind = "video" if moving else "image"
        marker = self.tokenizer.convert_ids_to_tokens(getattr(config, f"{kind}_token_id"))
        talk = [{"role": "user", "content": [{"type": kind, kind: ""}, {"type": "text", "text": self.instruction.format(prompt=prompt)}]}]
        text = self.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        if text.count(marker) != 1:
            raise UserError(f"the chat template writes {text.count(marker)} placeholders for one {kind}; takes a Qwen2-VL's")
        text = text.replace(marker, marker * int(grid.prod() // self.merge**2))
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].to(place)
        there = torch.isin(ids[0], torch.tensor(self.reads, device=place))
        if int(there.sum()) != len(self.reads):
            raise UserError(
                f"the prompt has {int(there.sum())} of the {len(self.reads)} tokens that the head reads; is one of them inside?"
            )
        pictures = {"pixel_values_videos" if moving else "pixel_values": patches.to(self.model.dtype), f"{kind}_grid_thw": grid[None]}
        kinds = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
        states = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, use_cache=False, **pictures)
        values = states.last_hidden_state[0, there].float()
        for number, (weight, bias) in enumerate(self.layers):
            values = functional.linear(functional.relu(values) if number else values, weight, bias)
        return values

    def patches(self, frames: Tensor, pixels: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """``[F, 3, H, W]`` in 0..1 -> patches ``[n, 3 * depth * patch^2]`` and their grid ``[3]`` (time, height, width)."""
        height, width = fitting(*frames.shape[-2:], unit=self.patch * self.merge, least=pixels[0], most=pixels[1])
        small = functional.interpolate(frames.float(), size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
        small = standard(small)
        short = -len(small) % self.depth
        small = torch.cat([small, small[-1:].expand(short, -1, -1, -1)])
        time, rows, columns = len(small) // self.depth, height // self.patch, width // self.patch
        shape = (time, self.depth, 3, rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch)
        cut = small.reshape(shape).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        grid = torch.tensor([time, rows, columns], device=frames.device)
        return cut.reshape(time * rows * columns, 3 * self.depth * self.patch**2), grid


def fitting(height: int, width: int, *, unit: int, least: int, most: int) -> tuple[int, int]:
    """The size nearest to this shape whose sides are multiples of ``unit`` and whose pixels are within least..most, as Qwen2-VL has it."""
    tall, wide = (max(unit, round(side / unit) * unit) for side in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        return tuple(max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))  # type: ignore[return-value]
    if tall * wide < least:
        grow = math.sqrt(least / (height * width))
        return tuple(math.ceil(side * grow / unit) * unit for side in (height, width))  # type: ignore[return-value]
    return tall, wide


def load_qwen_head(
    name: str, state: Mapping[str, Tensor], *, base: str, tokens: Sequence[str], instruction: str, dtype: str, device: str | None
) -> QwenHead:
    """The reward model of a state dict. Errors: UserError that begins with the reward's name and the key."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoTokenizer, Qwen2VLModel

    if dtype not in DTYPES:
        raise UserError(f"{name}.dtype: got {dtype!r}, takes bfloat16 or float32")
    words = read_instruction(name, instruction, tokens)
    with reading(f"{name}.base", base, "a folder or a hub id of a Qwen2-VL"):
        config = AutoConfig.from_pretrained(base)
        tokenizer = AutoTokenizer.from_pretrained(base)
        refuse_length(f"{name}.base", tokenizer)
    if config.model_type != "qwen2_vl":
        raise UserError(f"{name}.base: got a {config.model_type}, takes a Qwen2-VL")
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    own, head = renamed(state)
    if "language_model.embed_tokens.weight" not in own:
        raise UserError(f"{name}.weights: weights of another model: language_model.embed_tokens.weight is missing")
    config.text_config.vocab_size = own["language_model.embed_tokens.weight"].shape[0]
    with init_empty_weights(include_buffers=False):
        empty = Qwen2VLModel(config)
    place = device_of(device)
    model = filled(f"{name}.weights", empty, own, assign=True).to(device=place, dtype=DTYPES[dtype])
    for p in [*model.parameters(), *model.buffers()]:
        p.data = aligned(p.data)
    vision = config.vision_config
    return QwenHead(
        model, tokenizer, _layers(name, head, place), tokenizer.convert_tokens_to_ids(list(tokens)), words, vision.patch_size,
        vision.spatial_merge_size, vision.temporal_patch_size,
    )  # fmt: skip


def read_instruction(name: str, path: str, tokens: Sequence[str]) -> str:
    """The wording around a prompt, from a file with ``{prompt}`` and the tokens that are read.

    Errors: UserError for a file without one of them.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{name}.instruction: no such file: {path}")
    text = file.read_text(encoding="utf-8").replace("{text_prompt}", "{prompt}")
    if text.count("{prompt}") != 1 or any(text.count(token) != 1 for token in tokens):
        raise UserError(f"{name}.instruction: {path}: takes {{prompt}} and {', '.join(tokens)}, each once")
    before, after = text.split("{prompt}")
    return before.replace("{", "{{").replace("}", "}}") + "{prompt}" + after.replace("{", "{{").replace("}", "}}")


def renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the Qwen2-VL's tensors by today's names, the head's), of a state dict with old names or new ones; the language head is dropped."""
    own, head = dict[str, Tensor](), dict[str, Tensor]()
    for full, value in state.items():
        if full.startswith("rm_head."):
            head[full.removeprefix("rm_head.")] = value
        elif not full.startswith("lm_head."):
            name = re.sub(r"^model\.(?=language_model\.|visual\.)", "", full)
            own[re.sub(r"^model\.", "language_model.", name)] = value
    return own, head


def merged(name: str, state: Mapping[str, Tensor], *, alpha: float, stabilised: bool = False) -> dict[str, Tensor]:
    """A state dict of peft's with its adapters added in: ``W + s B A``, ``s = alpha / r``, or ``alpha / sqrt(r)`` where ``stabilised``."""
    plain = {full.removeprefix("base_model.model."): value for full, value in state.items()}
    merged: dict[str, Tensor] = {}
    for full, value in plain.items():
        if ".lora_" in full or ".original_module." in full:
            continue
        stem = full.removesuffix(".base_layer.weight")
        if stem != full:
            try:
                a, b = (plain[f"{stem}.lora_{side}.default.weight"].float() for side in "AB")
            except KeyError as error:
                raise UserError(f"{name}.weights: an adapter without {error.args[0]}") from error
            scale = alpha / (math.sqrt(len(a)) if stabilised else len(a))
            merged[f"{stem}.weight"] = (value.float() + scale * b @ a).to(value.dtype)
        else:
            merged[full.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = value
    return merged


def _layers(name: str, head: Mapping[str, Tensor], place: torch.device) -> list[tuple[Tensor, Tensor | None]]:
    """The linear layers of a head, first to last, float32."""
    numbers = sorted({int(key.split(".")[0]) for key in head if key.split(".")[0].isdigit()})
    stems = [f"{number}." for number in numbers] or [""]
    if not head or any(f"{stem}weight" not in head for stem in stems):
        raise UserError(f"{name}.weights: weights of another model: rm_head is missing")

    def held(key: str) -> Tensor | None:
        return aligned(head[key].float().to(place)).requires_grad_(False) if key in head else None

    return [(weight, held(f"{stem}bias")) for stem in stems if (weight := held(f"{stem}weight")) is not None]
