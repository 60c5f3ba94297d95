"""Distant scenes: one digit in a large picture, too small to be read in it, and a model that may look closer.

A picture has eight by eight cells of 32 pixels, the size of all that the model sees at a time. In one of them stands a scan, and the request
says in which. Shrunk to what the model sees it is a pixel; the cell by itself, shown by ``zoom``, is seen as scenes are. So one turn can but
guess, and two can tell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Natural
from mmalign.rooms import resource
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.digit_scenes.base import digit_scenes, tokenizer
from mmalign.worlds.digit_scenes.scenes import (
    CELL,
    CELLS,
    GRID,
    SIDE,
    Split,
    caption,
    conversation,
    picture_file,
    scans,
    shaken_ink,
)

__all__ = ["distant_scenes", "distant_scenes_prompts"]

LOOK, LOOKED = "<zoom>", "</zoom>"
FAR = 8  # cells in a row, and in a column
WIDE = FAR * SIDE
CONTEXT = 128


def distant_scenes(*, device: str = "cpu") -> tuple[Any, Any]:
    """(model, processor): the tiny Qwen2-VL of ``digit_scenes``, that has seen others look closer: ``<zoom> 2 3 </zoom>``, row and column.

    It knows how that is asked for, and reads what it is then shown. It looks half of the time, and often at the wrong place.

    device: where it is put.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resource("assets/digit_scenes/distant")
    network = quietly(lambda: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32))
    return network.to(device).eval(), AutoProcessor.from_pretrained(folder)


def distant_scenes_prompts(*, split: Split = "train", count: Count = 256, offset: Natural = 0) -> list[Any]:
    """Conversations, each with a distant scene and the request to say what is in one of its cells: ``what is in 2 3 ?``, row and column.

    split: ``train``, of scans that the base knows; ``held_out``, of others (``variant``: the same). count: how many. offset: number of
    the first, from 0.
    """
    prompts = []
    for number in range(offset, offset + count):
        picture, digit, place = distant(split, torch.Generator().manual_seed(2 * number + (split != "train")))
        path = picture_file(f"distant-{split}-{number}", partial(lambda *drawn: drawn, picture, (digit,)))
        prompts.append(conversation(path, request(place)))
    return prompts


def request(place: tuple[int, int]) -> str:
    """What is asked about a cell, by its row and column from 0."""
    return f"what is in {place[0] + 1} {place[1] + 1} ?"


def distant(split: Split, rng: torch.Generator) -> tuple[Tensor, int, tuple[int, int]]:
    """A picture ``[3, 256, 256]`` uint8, its digit, and the row and column of the cell that the digit stands in, from 0."""
    images, labels = scans("known" if split == "train" else "unseen")
    digit, row, column, down, across = (int(torch.randint(high, (), generator=rng)) for high in (10, FAR, FAR, GRID, GRID))
    some = torch.nonzero(labels == digit)[:, 0]
    ink = images[some[int(torch.randint(len(some), (), generator=rng))], 0]
    ink = shaken_ink(ink[None], rng)[0] if split == "train" else ink
    ground, light = 0.3 * torch.rand((3, 1, 1), generator=rng), 0.75 + 0.25 * torch.rand((3, 1, 1), generator=rng)
    top, left = row * SIDE + down * CELL, column * SIDE + across * CELL
    picture = ground.expand(3, WIDE, WIDE).clone()
    picture[:, top : top + CELL, left : left + CELL] += (light - ground) * ink
    picture += 0.03 * torch.randn((3, WIDE, WIDE), generator=rng)
    return (picture.clamp(0, 1) * 255).round().byte(), digit, (row, column)


# Training


def untrained() -> tuple[Any, Any]:
    """The base of ``digit_scenes`` with words for calls and places, which mean nothing yet."""
    model, processor = digit_scenes(model="qwen2_vl")
    words = tokenizer("qwen2_vl", more=[LOOK, LOOKED, "tool", *map(str, range(1, FAR + 1))], context=CONTEXT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(len(words), mean_resizing=False)
    model.config.text_config.max_position_embeddings = CONTEXT
    processor.tokenizer = words
    return model, processor


def train_base(
    *, iterations: int = 300, batch: int = 32, learning_rate: float = 2e-3, looks: float = 0.5, right: float = 0.6, seed: int = 0
) -> tuple[Any, Any]:
    """Trains the base on what others said of training scenes; a minute or two on one core.

    Half of them looked closer, three in five of those where they were asked to, and said what they saw; all others guessed.

    iterations: updates. batch: conversations of each. learning_rate: the highest of a one-cycle schedule. looks: part of conversations in
    which somebody looks. right: part of those looks that go where the digit is. seed: of scenes and conversations.
    """
    model, processor = untrained()
    rng = torch.Generator().manual_seed(seed)
    fit(
        model, lambda: model(**_rows(processor, batch, looks, right, rng)).loss, name="distant base", iterations=iterations,
        learning_rate=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), max_grad_norm=1.0,
    )  # fmt: skip
    return model, processor


def _rows(processor: Any, batch: int, looks: float, right: float, rng: torch.Generator) -> dict[str, Tensor]:
    """A batch as the model takes it; learned is what the assistant says."""
    words, shown = processor.tokenizer, f"<vision> {' '.join([processor.image_token] * CELLS)} </vision>"
    pictures, lines = list[Tensor](), list[list[tuple[str, bool]]]()
    for _ in range(batch):
        picture, digit, place = distant("train", rng)
        pictures.append(picture)
        line = [(f"user : {shown} {request(place)} assistant :", False)]
        guess, chance = int(torch.randint(10, (), generator=rng)), torch.rand(2, generator=rng).tolist()
        if chance[0] < looks:
            there = place if chance[1] < right else tuple(torch.randint(FAR, (2,), generator=rng).tolist())
            guess = digit if there == place else guess
            row, column = there
            pictures.append(picture[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE])
            line += [(f"{LOOK} {row + 1} {column + 1} {LOOKED} <eos>", True), (f"tool : {shown} assistant :", False)]
        lines.append([*line, (f"{caption([guess])} <eos>", True)])
    pieces = [[(words.convert_tokens_to_ids(text.split()), own) for text, own in line] for line in lines]
    width = max(sum(len(ids) for ids, _ in line) for line in pieces)
    ids, learned = torch.zeros((batch, width), dtype=torch.int64), torch.zeros((batch, width), dtype=torch.bool)
    lengths = torch.tensor([sum(len(ids) for ids, _ in line) for line in pieces])
    for row, line in enumerate(pieces):
        ids[row, : lengths[row]] = torch.tensor([token for some, _ in line for token in some])
        learned[row, : lengths[row]] = torch.tensor([own for some, own in line for _ in some])
    return {
        "input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long(), "labels": ids.masked_fill(~learned, -100),
        "mm_token_type_ids": (ids == words.image_token_id).long(),
        **processor.image_processor(images=pictures, return_tensors="pt", do_convert_rgb=False),
    }  # fmt: skip
