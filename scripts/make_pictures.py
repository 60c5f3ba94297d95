"""Remakes assets/pictures: 18 pictures of coloured shapes, a question about each with its answer, and a pair of answers about each.

    python scripts/make_pictures.py

Small complete data for configs of vision-language models: ``questions.jsonl`` (question, answer, image), ``pairs.jsonl`` (prompt, chosen,
rejected, images). Every question is asked of one picture alone, so that its words tell its answer.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parents[1] / "assets" / "pictures"
SIDE, CELLS = 224, 3
COLOURS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f77b4", "orange": "#ff7f0e", "purple": "#7b4ab5", "black": "#222222"}
SHAPES = ("disc", "square", "triangle")
NUMBERS = ("no", "one", "two", "three", "four", "five")


class Group(NamedTuple):
    """So many of a shape in a colour."""

    number: int
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{NUMBERS[self.number]} {self.colour} {self.shape}{'' if self.number == 1 else 's'}"


def scenes() -> list[tuple[Group, Group]]:
    """For each colour and shape a picture with one to four of it, and of one other kind beside it."""
    kinds = list(product(COLOURS, SHAPES))
    pairs = []
    for number, (colour, shape) in enumerate(kinds):
        rng = random.Random(number)
        other = rng.choice([kind for kind in kinds if kind[0] != colour and kind[1] != shape])
        pairs.append((Group(rng.randint(1, 4), colour, shape), Group(rng.randint(1, 4), *other)))
    return pairs


def drawn(scene: tuple[Group, Group], seed: int) -> Image.Image:
    """A picture on white, every shape in a cell of its own."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    pen, rng = ImageDraw.Draw(picture), random.Random(1000 + seed)
    cells = rng.sample(range(CELLS * CELLS), sum(group.number for group in scene))
    step = SIDE // CELLS
    for cell, group in zip(cells, [one for one in scene for _ in range(one.number)], strict=True):
        size = rng.randint(34, 56)
        left, top = (cell % CELLS) * step + (step - size) // 2, (cell // CELLS) * step + (step - size) // 2
        box = (left, top, left + size, top + size)
        if group.shape == "disc":
            pen.ellipse(box, fill=COLOURS[group.colour])
        elif group.shape == "square":
            pen.rectangle(box, fill=COLOURS[group.colour])
        else:
            pen.polygon([(left, top + size), (left + size, top + size), (left + size // 2, top)], fill=COLOURS[group.colour])
    return picture


def rows() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of both files."""
    questions, pairs = [], []
    for number, (first, other) in enumerate(scenes()):
        name = f"{number:02}.png"
        words = f"How many {first.colour} {first.shape}s are in the picture? Answer with a number."
        questions.append({"question": words, "answer": str(first.number), "image": name})
        wrong = first._replace(number=first.number + 1) if number % 2 else first._replace(shape=SHAPES[SHAPES.index(first.shape) - 1])
        chosen, rejected = f"The picture shows {first} and {other}.", f"The picture shows {wrong} and {other}."
        pairs.append({"prompt": "What does the picture show?", "chosen": chosen, "rejected": rejected, "images": [name], "id": str(number)})
    return questions, pairs


def write() -> None:
    """Puts everything in its place."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes()):
        drawn(scene, number).quantize(16).save(FOLDER / f"{number:02}.png", optimize=True)
    for name, lines in zip(("questions", "pairs"), rows(), strict=True):
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    write()
