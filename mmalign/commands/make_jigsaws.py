"""Puzzles whose answer is known without anybody's labels: an image's pieces, a video's clips, points by their depth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from mmalign.arguments.ranges import Count, Seed, Share
from mmalign.distributed.team import joined
from mmalign.files import appearing, write_text
from mmalign.media import Broken, Limits, footage, picture
from mmalign.runs.pictures import write_mp4, write_png
from mmalign.types import UserError

__all__ = ["make_jigsaws"]

TASKS = {
    "image": "An image was cut into {pieces} pieces, {rows} rows of {columns}. They are shown shuffled, numbered as above. "
    "Which numbers make the image again, row by row, from left to right?",
    "video": "A video was cut into {pieces} clips. They are shown shuffled, numbered as above. In which order do they happen?",
    "depth": "{pieces} points are marked in the image. Order them from the nearest to the farthest.",
}
FORM = (
    "Think between <think> and </think>, then write the numbers between <answer> and </answer>, such as <answer>2, 1</answer> where there "
    "are two."
)
LEAST = 8  # pixels of a piece's side


def make_jigsaws(  # what a command may be told
    files: Sequence[str],
    *,
    out: str,
    of: Literal["image", "video", "depth"] = "image",
    grid: tuple[Count, Count] = (3, 3),
    pieces: Count = 6,
    trim: Share = 0.1,
    frames: Count = 8,
    depths: Sequence[str] = (),
    copies: Count = 1,
    seed: Seed = 0,
) -> dict[str, int]:
    """A folder with ``prompts.jsonl`` and its media, for the reward ``jigsaw``; returns counts: ``prompts``, and ``broken`` files left out.

    Args:
        files: images or videos, or one folder of them, read in the order of their names.
        out: the folder; it appears whole or not at all.
        of: ``image``, its pieces shuffled, to be put in rows again; ``video``, its clips shuffled, to be put in time; ``depth``, points of
            an image from the nearest to the farthest.
        grid: rows and columns of an image's pieces, all of one size: what does not divide is cut off around it.
        pieces: clips of a video, or points of an image. trim: the part of a clip that is cut off at either end, so that its last frame is
            not the next one's first; below 0.5. frames: of a clip.
        depths: as many files as images: the depth of every pixel, as PNG or NPY; larger is farther, 0 is not known.
        copies: puzzles of each file. seed: of the shuffling, and of the points.

    The lines are ``{"prompt": [one turn of the user's], "order": [numbers]}``; no puzzle is shown in its right order.

    Paper: Visual Jigsaw, https://arxiv.org/abs/2509.25190; a grid of 3 x 3, six clips, six points, and trims of a tenth, as recalled.
    Deviations: words of ours; points are a tenth of the image's range of depths apart, or more.

    Errors: UserError for a folder that is there already, for no files, and for settings out of range.
    """
    paths = _listed(files)
    maps = [*depths] if of == "depth" else [""] * len(paths)
    count = grid[0] * grid[1] if of == "image" else pieces
    if of not in TASKS or count < 2 or not 0 <= trim < 0.5 or len(maps) != len(paths):
        got = f"of={of!r}, {count} pieces, trim={trim}, {len(maps)} depths of {len(paths)} images"
        raise UserError(f"make_jigsaws: got {got}; takes image, video or depth, 2 pieces or more, trim below 0.5, a depth for each image")
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new folder")
    if joined().size > 1:
        raise UserError("--processes: got several, puzzles are made by one; takes 1")
    task = f"{TASKS[of].format(pieces=count, rows=grid[0], columns=grid[1])} {FORM}"
    counts, lines = {"prompts": 0, "broken": 0}, list[str]()
    with appearing(Path(out).absolute()) as whole:
        for number, (path, depth) in enumerate(zip(tqdm(paths, unit="file", disable=None), maps, strict=True)):
            try:
                for copy in range(copies):
                    rng = Random(f"{seed}/{number}/{copy}")
                    shown, order = _puzzle(of, path, depth, rng, grid=grid, pieces=pieces, trim=trim, frames=frames)
                    content = list(_written(whole, f"{number:06d}_{copy}", shown))
                    row = {"prompt": [{"role": "user", "content": [*content, {"type": "text", "text": task}]}], "order": order}
                    lines.append(json.dumps(row, ensure_ascii=False) + "\n")
                    counts["prompts"] += 1
            except Broken as error:
                counts["broken"] += 1
                tqdm.write(f"left out: {error}")
        if not lines:
            raise UserError(f"make_jigsaws: none of {len(paths)} files could be used")
        write_text(whole / "prompts.jsonl", "".join(lines))
    return counts


def _listed(files: Sequence[str]) -> list[str]:
    """The files, or those of one folder. Errors: UserError for none."""
    listed = [files] if isinstance(files, str) else list(files)
    if len(listed) == 1 and Path(listed[0]).is_dir():
        listed = sorted(str(path) for path in Path(listed[0]).iterdir() if path.is_file() and not path.name.startswith("."))
    if not listed:
        raise UserError(f"make_jigsaws.files: got {files!r}, takes files, or a folder of them")
    return listed


def _puzzle(
    of: str, path: str, depth: str, rng: Random, *, grid: tuple[int, int], pieces: int, trim: float, frames: int
) -> tuple[list[Tensor], list[int]]:  # fmt: skip
    """What is shown, in its order, uint8, and the answer: of each right place the number, from 1, of what belongs there."""
    if of == "depth":
        return _points(path, depth, rng, pieces)
    right = _squares(path, grid) if of == "image" else _clips(path, pieces, trim, frames)
    shuffled = list(range(len(right)))
    while shuffled == sorted(shuffled):
        rng.shuffle(shuffled)
    return [right[place] for place in shuffled], [shuffled.index(place) + 1 for place in range(len(right))]


def _pixels(path: str) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(picture(path, Limits()))


def _squares(path: str, grid: tuple[int, int]) -> list[Tensor]:
    """Equal pieces ``[3, h, w]`` of the middle of an image, in raster order."""
    image = _pixels(path)
    high, wide = (side // count for side, count in zip(image.shape[1:], grid, strict=True))
    if min(high, wide) < LEAST:
        raise Broken(f"{path}: {image.shape[2]} x {image.shape[1]} pixels are too few for {grid[1]} x {grid[0]} pieces of {LEAST} or more")
    top, left = ((side - part * count) // 2 for side, part, count in zip(image.shape[1:], (high, wide), grid, strict=True))
    places = [(top + row * high, left + column * wide) for row in range(grid[0]) for column in range(grid[1])]
    return [image[:, y : y + high, x : x + wide] for y, x in places]


def _clips(path: str, pieces: int, trim: float, frames: int) -> list[Tensor]:
    """Clips ``[frames, 3, H, W]`` in time, each without its two ends."""
    whole = footage(path, Limits(frames=200_000)).frames
    length = len(whole) // pieces
    cut = int(length * trim)
    if length - 2 * cut < frames:
        raise Broken(f"{path}: {len(whole)} frames are too few for {pieces} clips of {frames} frames")
    chosen = [round(place * (length - 2 * cut - 1) / max(1, frames - 1)) for place in range(frames)]
    return [whole[[start + cut + place for place in chosen]] for start in range(0, length * pieces, length)]


def _points(path: str, depth: str, rng: Random, count: int) -> tuple[list[Tensor], list[int]]:
    """The image with its points marked, and their numbers from the nearest to the farthest."""
    from PIL import Image, ImageDraw, ImageFont

    image, far = _pixels(path), _depth(depth)
    if far.shape != image.shape[1:]:
        raise Broken(f"{depth}: got {list(far.shape)}, takes the image's {list(image.shape[1:])}")
    known = far[far > 0]
    if not len(known) or float(known.max()) <= float(known.min()):
        raise Broken(f"{depth}: has no two depths")
    apart = (float(known.max()) - float(known.min())) / 10
    radius = max(6, min(far.shape) // 40)
    points: list[tuple[int, int]] = []
    for _ in range(100 * count):  # each as far from all others as it has to be, in the image and in depth
        y, x = rng.randrange(far.shape[0]), rng.randrange(far.shape[1])
        near = any(max(abs(y - v), abs(x - u)) < 3 * radius or abs(float(far[y, x] - far[v, u])) < apart for v, u in points)
        if float(far[y, x]) > 0 and not near:
            points.append((y, x))
        if len(points) == count:
            break
    else:
        raise Broken(f"{depth}: no {count} points are a tenth of its depths apart")
    drawn = Image.fromarray(image.permute(1, 2, 0).numpy())
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(radius * 1.2)
    for number, (y, x) in enumerate(points, start=1):
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="red", outline="white")
        pen.text((x, y), str(number), fill="white", font=font, anchor="mm")
    order = sorted(range(count), key=lambda point: float(far[points[point]]))
    from torchvision.transforms.functional import pil_to_tensor

    return [pil_to_tensor(drawn)], [point + 1 for point in order]


def _depth(path: str) -> Tensor:
    """``[H, W]`` float64 of a PNG of grey levels, or of an NPY of numbers."""
    import numpy as np
    from PIL import Image

    try:
        if path.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path, formats=("PNG", "TIFF")) as opened:
                Limits().check_pixels(f"{path}: ", *opened.size)
                values = np.array(opened)
        far = torch.as_tensor(values.astype("float64"))
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise Broken(f"{path}: no map of depths: {' '.join(str(error).split())}") from error
    if far.ndim != 2 or not bool(far.isfinite().all()):
        raise Broken(f"{path}: got {list(far.shape)}, takes one finite number for each pixel")
    return far


def _written(folder: Path, name: str, shown: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """The parts of a turn that show these images or videos, each behind its number where there are several."""
    for number, piece in enumerate(shown, start=1):
        kind, write, ending = ("video", write_mp4, "mp4") if piece.ndim == 4 else ("image", write_png, "png")
        file = write(folder / f"{name}_{number}.{ending}", piece)
        if len(shown) > 1:
            yield {"type": "text", "text": f"{number}:"}
        yield {"type": kind, kind: file.name}
