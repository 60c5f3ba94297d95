"""Remakes assets/edits and assets/video_pairs: small drawn examples of the data that configs for editing and video models take.

pip install av && python scripts/make_examples.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ASSETS = Path(__file__).parents[1] / "assets"
SIDE, FRAMES, WIDTH, HEIGHT = 256, 129, 208, 120

# prompt, (shape, colour, side of the shape) before, as asked, and as it should not be
EDITS = [
    ("make the red square blue", ("square", "red", 120), ("square", "blue", 120), ("square", "green", 120)),
    ("turn the green circle into a square", ("circle", "green", 120), ("square", "green", 120), ("circle", "green", 60)),
    ("make the yellow circle twice as large", ("circle", "gold", 70), ("circle", "gold", 140), ("square", "gold", 70)),
    ("make the blue circle black", ("circle", "blue", 120), ("circle", "black", 120), ("circle", "blue", 120)),
    ("make the purple square half as large", ("square", "purple", 160), ("square", "purple", 80), ("circle", "purple", 160)),
    ("turn the orange square into a circle", ("square", "orange", 120), ("circle", "orange", 120), ("square", "red", 120)),
]
VIDEOS = [("a red ball rolls from left to right", "red"), ("a blue ball rolls from left to right", "blue")]


def drawn(shape: str, colour: str, side: int) -> Image.Image:
    """One shape in the middle of a light square."""
    picture = Image.new("RGB", (SIDE, SIDE), "whitesmoke")
    box = [(SIDE - side) // 2, (SIDE - side) // 2, (SIDE + side) // 2, (SIDE + side) // 2]
    draw = ImageDraw.Draw(picture)
    (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=colour)
    return picture


def edits(folder: Path) -> None:
    """``edits.jsonl``: prompt and source image. ``pairs.jsonl``: prompt, chosen and rejected."""
    folder.mkdir(exist_ok=True)
    sources, pairs = [], []
    for number, (prompt, *states) in enumerate(EDITS):
        names = [f"{number}_{kind}.png" for kind in ("source", "chosen", "rejected")]
        for name, state in zip(names, states, strict=True):
            drawn(*state).save(folder / name, optimize=True)
        sources.append({"prompt": prompt, "image": names[0]})
        pairs.append({"prompt": prompt, "chosen": names[1], "rejected": names[2]})
    _lines(folder / "edits.jsonl", sources)
    _lines(folder / "pairs.jsonl", pairs)


def videos(folder: Path) -> None:
    """``pairs.jsonl``: a ball that rolls, and one that jumps about."""
    folder.mkdir(exist_ok=True)
    pairs = []
    for number, (prompt, colour) in enumerate(VIDEOS):
        names = [f"{number}_{kind}.mp4" for kind in ("chosen", "rejected")]
        for name, places in zip(names, ([t / (FRAMES - 1) for t in range(FRAMES)], [t * 0.37 % 1 for t in range(FRAMES)]), strict=True):
            _video(folder / name, [_ball(colour, place) for place in places])
        pairs.append({"prompt": prompt, "chosen": names[0], "rejected": names[1]})
    _lines(folder / "pairs.jsonl", pairs)


def _ball(colour: str, place: float) -> Image.Image:
    picture, radius = Image.new("RGB", (WIDTH, HEIGHT), "whitesmoke"), 16
    x = radius + place * (WIDTH - 2 * radius)
    ImageDraw.Draw(picture).ellipse([x - radius, HEIGHT / 2 - radius, x + radius, HEIGHT / 2 + radius], fill=colour)
    return picture


def _video(path: Path, frames: list[Image.Image]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt, stream.options = WIDTH, HEIGHT, "yuv420p", {"crf": "30"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    edits(ASSETS / "edits")
    videos(ASSETS / "video_pairs")
