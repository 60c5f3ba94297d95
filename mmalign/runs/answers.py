"""What a model answered at each evaluation, in the run's folder, with the images that it was asked about::

    answers/step_000040.jsonl    {"prompt": "What is there?", "images": ["images/3f2a9c.png"], "answer": "a dog and a cat",
                                  "scores": {"honest": 0.5}, "mentions": [[2, 5, "dog", true], [12, 15, "cat", false]],
                                  "objects": ["dog"]}
    answers/images/3f2a9c.png    a small copy, once for all steps

``mentions`` (start, end, object, whether it is there) and ``objects`` (what is there) are in a line only where the evaluation could
tell (``EvaluationPlan.mark``); ``turns`` (``role``, ``text``, ``images``) in those of conversations, all that was said before the answer;
``credits`` (start, end, nats over the reference, of each token) in those of the first answers of a language model. Prompts of a
conversation are their last user turn.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign import media
from mmalign.conversations import answer_of, media_of, texts_of, words_and_images
from mmalign.files import finite, plain, write_bytes, write_text
from mmalign.runs.metrics import is_number
from mmalign.types import UserError

NAME = re.compile(r"step_(\d{1,12})\.jsonl", re.ASCII)
SHOWN = 64  # answers in a tracker's table
LARGEST = 224  # pixels of a copy's longer side
LIMITS = media.Limits(pixels=2**26, animated="first")  # an image with more is not opened here


def write(
    folder: Path, step: int, prompts: Sequence[Any], answers: Sequence[Any], marks: Sequence[Mapping[str, Any]] | None = None,
    scores: Mapping[str, Tensor] | None = None, credits: Mapping[int, Sequence[tuple[int, int, float]]] | None = None,
) -> Path:  # fmt: skip
    """``answers/step_000040.jsonl``, a line for each answer. An image that cannot be read is null there.

    answers: words, or the turns that followed the prompt, of which the assistant's last is the answer.
    scores: name -> a number for each answer, in any shape; NaN is null. credits: number of an answer -> (start, end,
    nats) of its tokens, over the reference.
    """
    columns = {name: values.flatten().tolist() for name, values in (scores or {}).items()}
    lines = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        question, images = words_and_images(prompt)
        words, earlier = _said(folder / "answers", answer)
        row = {"prompt": question, "images": [_kept(folder / "answers", image) for image in images], "answer": words, **earlier}
        of_row = {"scores": {name: values[number] for name, values in columns.items()}} if columns else {}
        gained = {"credits": [list(part) for part in credits[number]]} if credits and number in credits else {}
        lines.append({**row, **of_row, **gained, **({} if marks is None else _mark(marks[number]))})
    text = "".join(json.dumps(finite(plain(line)), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    return write_text(folder / "answers" / f"step_{step:06d}.jsonl", text)


def _said(folder: Path, answer: Any) -> tuple[str, dict[str, Any]]:
    """The words of an answer, and of a conversation the turns before them."""
    if isinstance(answer, str):
        return answer, {}
    last = max(place for place, turn in enumerate(answer) if turn["role"] == "assistant")
    turns = [
        {"role": turn["role"], "text": " ".join(texts_of(turn)), "images": [_kept(folder, medium.source) for medium in media_of([turn])]}
        for turn in answer[:last]
    ]
    return "".join(texts_of(answer[last])), {"turns": turns}


def table(prompts: Sequence[Any], answers: Sequence[Any], scores: Mapping[str, Tensor] | None = None) -> tuple[list[str], list[list[Any]]]:
    """(columns, rows): the first ``SHOWN`` prompts, their answers and scores, for trackers."""
    columns = {name: values.flatten().tolist() for name, values in (scores or {}).items()}
    rows = []
    for number, (prompt, answer) in enumerate(zip(prompts[:SHOWN], answers, strict=False)):
        words = answer if isinstance(answer, str) else answer_of(answer)
        rows.append([words_and_images(prompt)[0], words, *(values[number] for values in columns.values())])
    return ["prompt", "answer", *columns], rows


def _mark(mark: Mapping[str, Any]) -> dict[str, Any]:
    mentions = [[int(start), int(end), str(name), bool(there)] for start, end, name, there in mark.get("mentions", [])]
    return {"mentions": mentions, "objects": [str(name) for name in mark.get("objects", [])]}


def read(folder: Path) -> tuple[list[tuple[int, list[dict[str, Any]]]], list[str]]:
    """((step, lines) in order of steps, notes on what could not be read)."""
    steps, notes = [], []
    for file in sorted((folder / "answers").glob("step_*.jsonl")):
        if (match := NAME.fullmatch(file.name)) is None:
            continue
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, ValueError, RecursionError):  # torn, or not of ours
            notes.append(f"{file.name} could not be read")
            continue
        steps.append((int(match[1]), [_line(row) for row in rows if isinstance(row, dict)]))
    return sorted(steps, key=lambda step: step[0]), notes


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line as ``write`` writes them; what is of another kind is left out."""
    line: dict[str, Any] = {"prompt": str(row.get("prompt", "")), "images": _names(row), "answer": str(row.get("answer") or "")}
    if isinstance(row.get("turns"), list):
        turns = [turn for turn in row["turns"] if isinstance(turn, dict)]
        line["turns"] = [{"role": str(turn.get("role")), "text": str(turn.get("text") or ""), "images": _names(turn)} for turn in turns]
    if isinstance(row.get("scores"), dict):
        line["scores"] = {name: value for name, value in row["scores"].items() if is_number(value)}
    if isinstance(row.get("credits"), list):
        line["credits"] = [part for part in row["credits"] if isinstance(part, list) and len(part) == 3 and all(map(is_number, part))]
    if not isinstance(row.get("mentions"), list):
        return line
    mentions = [mark for mark in row["mentions"] if isinstance(mark, list) and [type(part) for part in mark] == [int, int, str, bool]]
    return {**line, "mentions": mentions, "objects": _texts(row.get("objects"))}


def _names(row: Mapping[str, Any]) -> list[str | None]:
    images = row.get("images")
    some = images if isinstance(images, list) else []
    return [name if isinstance(name, str) else None for name in some]


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _kept(folder: Path, image: Any) -> str | None:
    """The name of a small copy of an image, upright, made where it is not there yet; None for one that cannot be read."""
    from PIL import Image

    try:
        small = Image.fromarray(_pixels(image)) if isinstance(image, Tensor) else media.picture(image, LIMITS)
    except media.Broken:
        return None  # the answer is worth showing without it
    if max(small.size) > LARGEST:
        small.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    name = f"images/{hashlib.blake2b(buffer.getvalue(), digest_size=8).hexdigest()}.png"
    if not (folder / name).exists():
        write_bytes(folder / name, buffer.getvalue())
    return name


def _pixels(image: Tensor) -> Any:
    """``[C, H, W]`` in 0..1 as an array that Pillow takes."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UserError(f"prompts: got an image of shape {list(image.shape)}, takes [1 or 3, height, width]")
    bytes_ = (image.detach().float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu()
    return bytes_.expand(3, -1, -1).permute(1, 2, 0).numpy() if image.shape[0] == 1 else bytes_.permute(1, 2, 0).numpy()
