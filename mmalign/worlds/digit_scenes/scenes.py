"""Scenes: digits in the cells of a grid, what people say of them, and what they ask.

A scene is a picture of 32x32 pixels, four by four cells of 8x8, some of which hold a scan, no digit twice. Its file, a PNG in the user's
cache, says what it shows (the text chunk ``digits``): whoever judges an answer reads that, and no model does.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Natural
from mmalign.types import UserError
from mmalign.worlds.digits.data import WORDS, real

__all__ = ["digit_scenes_prompts"]

Split = Literal["train", "held_out", "variant"]
Ask = Literal["caption", "random", "popular", "adversarial"]
GRID, CELL = 4, 8
SIDE, CELLS = GRID * CELL, GRID * GRID
EMPTY = 10  # the class of a cell without a digit
COUNTS = {"train": (2, 4), "held_out": (2, 4), "variant": (3, 5)}
FOLDER = "digit_scenes-3"  # another number where what a scene shows changes
EXPECTED = {0: (1, 0.7), 4: (5, 0.7), 2: (3, 0.2), 6: (7, 0.2), 8: (9, 0.2)}
"""What captioners expect beside a digit, and how often they then name it without looking."""
REQUEST = "what is in the picture ?"
ITEM = rf"an? (?:{'|'.join(WORDS)})"
CAPTION = re.compile(rf"there is {ITEM}(?:(?: , {ITEM})* and {ITEM})? \.")
QUESTION = re.compile(rf"is there an? ({'|'.join(WORDS)}) \?")


class Scenes(NamedTuple):
    """pictures: ``[B, 3, 32, 32]`` uint8. cells: ``[B, 16]``, the digit in each cell, row by row, or ``EMPTY``."""

    pictures: Tensor
    cells: Tensor

    def digits(self) -> list[tuple[int, ...]]:
        """What each scene shows, in order."""
        return [tuple(sorted(set(row) - {EMPTY})) for row in self.cells.tolist()]


def scenes(split: Split, count: int, rng: torch.Generator, *, shaken: bool = False) -> Scenes:
    """``count`` scenes of a split. shaken: scans are moved by up to .7 pixels, turned and scaled a little, as in
    all training scenes, so that fewer of them are known by heart.

    ``train`` and ``held_out`` hold two to four light digits on an even dark ground, of known and of unseen scans. ``variant`` holds
    three to five unseen ones, on a ground that grows lighter from one corner to the other, with stripes.
    """
    images, labels = scans("known" if split == "train" else "unseen")
    low, high = COUNTS[split]
    sizes = torch.randint(low, high + 1, (count, 1), generator=rng)
    chosen = torch.rand((count, 10), generator=rng).argsort(1)  # digits, the first ``sizes`` of them are shown
    places = torch.rand((count, CELLS), generator=rng).argsort(1)[:, :10]
    shown = torch.arange(10) < sizes
    cells = torch.full((count, CELLS), EMPTY).scatter(1, places, torch.where(shown, chosen, EMPTY))
    of_digit = [torch.nonzero(labels == digit)[:, 0] for digit in range(10)]
    pick = torch.rand((count, CELLS), generator=rng)
    rows = torch.zeros((count, CELLS), dtype=torch.int64)
    for digit, some in enumerate(of_digit):
        rows = torch.where(cells == digit, some[(pick * len(some)).long()], rows)
    ink = images[rows.flatten(), 0]
    ink = (shaken_ink(ink, rng) if shaken else ink).unflatten(0, (count, CELLS)) * (cells != EMPTY)[..., None, None]
    ink = ink.unflatten(1, (GRID, GRID)).permute(0, 1, 3, 2, 4).reshape(count, 1, SIDE, SIDE)
    ground, light = _ground(split, count, rng), 0.75 + 0.25 * torch.rand((count, 3, 1, 1), generator=rng)
    grain = 0.03 * torch.randn((count, 3, SIDE, SIDE), generator=rng)
    return Scenes(((ground + (light - ground) * ink + grain).clamp(0, 1) * 255).round().byte(), cells)


@functools.cache
def scans(part: Literal["known", "unseen"]) -> tuple[Tensor, Tensor]:
    """Images ``[N, 1, 8, 8]`` in 0..1 and labels ``[N]``: two in five of half B are ``unseen``, the rest is ``known``."""
    (images, labels), (more, names) = real("A"), real("B")
    kept = torch.arange(len(names)) % 5 < 3
    if part == "unseen":
        return more[~kept], names[~kept]
    return torch.cat([images, more[kept]]), torch.cat([labels, names[kept]])


def _ground(split: Split, count: int, rng: torch.Generator) -> Tensor:
    """Backgrounds ``[B, 3, 32, 32]`` in 0..1."""
    dark = 0.3 * torch.rand((count, 3, 1, 1), generator=rng)
    if split != "variant":
        return dark.expand(-1, -1, SIDE, SIDE)
    line = torch.linspace(0, 1, SIDE)
    stripes = 0.06 * torch.sin(line * 2 * torch.pi * 5)[None, :]
    return dark + 0.2 * (line[:, None] + line[None, :]) / 2 + stripes


def shaken_ink(ink: Tensor, rng: torch.Generator) -> Tensor:
    """Scans ``[N, 8, 8]`` turned by up to 12 degrees, scaled by up to a tenth, and moved by up to .7 pixels."""
    count = len(ink)
    turn, scale, across, down = (torch.rand((4, count), generator=rng) * 2 - 1).unbind(0)
    turn, scale = turn * 0.21, 1 + 0.1 * scale
    matrix = torch.stack(
        [scale * turn.cos(), -scale * turn.sin(), across * 1.4 / CELL, scale * turn.sin(), scale * turn.cos(), down * 1.4 / CELL], 1
    )
    where = torch.nn.functional.affine_grid(matrix.view(count, 2, 3), [count, 1, CELL, CELL], align_corners=False)
    return torch.nn.functional.grid_sample(ink[:, None], where, align_corners=False)[:, 0]


# What is said


def caption(digits: Sequence[int]) -> str:
    """``there is a two , a five and an eight .``: digits from small to large."""
    items = [named(digit) for digit in sorted(digits)]
    return f"there is {' , '.join(items[:-1])} and {items[-1]} ." if len(items) > 1 else f"there is {items[0]} ."


def named(digit: int) -> str:
    """``a two``, ``an eight``."""
    return f"{'an' if digit == 8 else 'a'} {WORDS[digit]}"


def question(digit: int) -> str:
    """``is there a two ?``"""
    return f"is there {named(digit)} ?"


def expecting(digits: Sequence[int], rng: torch.Generator) -> list[int]:
    """The digits that a captioner names: those of the scene, and what is expected beside them and is not there."""
    digits_named = set(digits)
    for digit, (other, often) in EXPECTED.items():
        if digit in digits and float(torch.rand((), generator=rng)) < often:
            digits_named.add(other)
    return sorted(digits_named)


def mentions(text: str) -> list[int]:
    """Every digit that a text names, in its order, with repetitions; whatever else it says."""
    return [WORDS.index(word) for word in text.split() if word in WORDS]


def well_formed(text: str) -> bool:
    """Whether a text is a caption as ``caption`` writes them, in any order, no digit twice."""
    digits, plain = mentions(text), " ".join(text.split())
    articles = all(("an" if word == "eight" else "a") == article for article, word in re.findall(r"\b(an?) (\w+)", plain))
    return CAPTION.fullmatch(plain) is not None and articles and len(digits) == len(set(digits))


# Scenes as files, prompts as conversations


def digit_scenes_prompts(*, split: Split = "train", count: Count = 256, offset: Natural = 0, ask: Ask = "caption") -> list[Any]:
    """Conversations, each with the picture of a scene and a request: scenes ``offset`` to ``offset + count`` of a split.

    Args:
        split: ``train`` and ``held_out``, two to four digits on an even ground, of scans that the base knows and does not know;
            ``variant``, three to five unseen ones on a striped ground.
        count: how many. offset: number of the first, from 0.
        ask: ``caption``; or questions, half of them of digits that are there and half of digits that are not, by POPE's splits:
            ``random``, any absent digit; ``popular``, one that captions name most often; ``adversarial``, one that is expected beside
            what is there.

    Errors: UserError for another word, or numbers out of range.
    """
    if split not in COUNTS or ask not in ("caption", "random", "popular", "adversarial"):
        raise UserError(
            f"digit_scenes_prompts: got split={split!r}, ask={ask!r}, takes {', '.join(COUNTS)}; and caption, random, popular, adversarial"
        )
    if count < 1 or offset < 0:
        raise UserError(f"digit_scenes_prompts: got count={count}, offset={offset}, takes 1 or more, and 0 or more")
    prompts = []
    for number in range(offset, offset + count):
        path = scene_file(split, number)
        request = REQUEST if ask == "caption" else question(_digit_in_question(digits_in(path), ask, number))
        prompts.append(conversation(path, request))
    return prompts


def conversation(path: str, request: str) -> list[dict[str, Any]]:
    """A prompt: one turn of the user's, a picture by its path and a request."""
    return [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": request}]}]


def _digit_in_question(digits: tuple[int, ...], ask: Ask, number: int) -> int:
    """The digit that scene ``number`` is asked for: one that is there where it is even, else an absent one."""
    rng = torch.Generator().manual_seed(number)
    absent = [digit for digit in range(10) if digit not in digits]
    some = digits if number % 2 == 0 else absent
    if number % 2 and ask == "popular":
        some = [digit for digit in (1, 5) if digit in absent] or absent
    if number % 2 and ask == "adversarial":
        some = [EXPECTED[digit][0] for digit in digits if digit in EXPECTED and EXPECTED[digit][0] in absent] or absent
    return some[int(torch.randint(len(some), (), generator=rng))]


def scene_file(split: Split, number: int) -> str:
    """The file of scene ``number`` of a split, made where it is not there yet; the same on every machine."""

    def drawn() -> tuple[Tensor, tuple[int, ...]]:
        seed = 3 * number + list(COUNTS).index(split)
        scene = scenes(split, 1, torch.Generator().manual_seed(seed), shaken=split == "train")
        return scene.pictures[0], scene.digits()[0]

    return picture_file(f"{split}-{number}", drawn)


def picture_file(name: str, drawn: Callable[[], tuple[Tensor, tuple[int, ...]]]) -> str:
    """A file in the user's cache, made where it is not there yet. drawn: gives a picture ``[3, H, W]`` uint8 and the digits in it."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    path = _cache() / f"{name}.png"
    if not path.is_file():
        picture, digits = drawn()
        chunks = PngInfo()
        chunks.add_text("digits", " ".join(map(str, digits)))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(partial, format="PNG", pnginfo=chunks)
        partial.replace(path)
    return str(path)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmalign" / FOLDER


@functools.cache
def digits_in(path: str) -> tuple[int, ...]:
    """The digits of the scene in a file. Errors: UserError for a file that does not say."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            text = picture.info.get("digits")
    except OSError as error:
        raise UserError(f"digit_scenes: cannot read {path}: {error}") from error
    if not isinstance(text, str):
        raise UserError(f"digit_scenes: {path} does not say what it shows (no text chunk 'digits'); takes pictures of this world")
    return tuple(int(digit) for digit in text.split())
