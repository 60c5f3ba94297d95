"""Source images of editing models: what a prompt asks to be changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.data._reading.parsing import is_file
from mmalign.data._reading.tables import numbered_lines
from mmalign.media import Broken, Limits, image
from mmalign.types import UserError

__all__ = ["source_images"]


def source_images(
    path: str, *, key: str = "prompt", column: str = "image", size: Count | list[int] | None = None
) -> Callable[[list[str]], dict[str, Any]]:
    """``conditions`` of a policy: prompts -> ``{"image": [a PIL image for each]}``, from JSON lines with a prompt and a path in each.

    key, column: where prompt and path stand; paths are relative to the file. size: pixels, or [height, width], that every image is
    scaled and cut to (images of one batch have to be of one size); None takes them as they are. Images are decoded when they are
    asked for. A policy tells its rows apart by their prompts, so that an instruction given for two images has to be worded twice.

    Errors: UserError with the line's number, before anything is sampled, for a line that cannot be read, a file that is not there, or one
    prompt with two images; and for a prompt without an image when it is asked for.
    """
    file = Path(path)
    if not is_file(file):
        raise UserError(f"conditions.path: no such file: {path[:240]}")
    both = (size, size) if isinstance(size, int) else size
    if both is not None and (len(both) != 2 or min(both) < 1):
        raise UserError(f"conditions.size: got {size}, takes pixels or [height, width]")
    sources: dict[str, Path] = {}
    for number, row in numbered_lines(file):
        where = f"{path}, line {number}"
        if isinstance(row, Broken) or not isinstance(row.get(key), str) or not isinstance(row.get(column), str):
            raise UserError(f"{where}: {row if isinstance(row, Broken) else f'takes an object with strings under {key!r} and {column!r}'}")
        prompt, source = row[key], file.parent / row[column]
        if sources.setdefault(prompt, source) != source:
            raise UserError(f"{where}: {prompt[:120]!r} has another image already; word it differently")
        if not is_file(source):
            raise UserError(f"{where}: no such file: {str(source)[:240]}")
    if not sources:
        raise UserError(f"{path}: got no lines, takes {{{key!r}: ..., {column!r}: ...}}")
    limits = Limits(size=None if both is None else (both[0], both[1]))

    def conditions(prompts: list[str]) -> dict[str, Any]:
        if missing := [prompt for prompt in prompts if prompt not in sources]:
            raise UserError(f"conditions: {path} has no image for {missing[0]!r}")
        return {"image": [_picture(sources[prompt], limits) for prompt in prompts]}

    return conditions


def _picture(path: Path, limits: Limits) -> Any:
    from PIL import Image

    try:
        pixels = image(str(path), limits)
    except Broken as error:
        raise UserError(f"conditions: {path}: {error}") from error
    return Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
