"""What judges share: a question about an output as a chat message, and a score or a choice read off the answer."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.conversations import media_of, question
from mmalign.rewards._shared.pictures import eight_bits
from mmalign.serving.chat import Answer, Unreadable
from mmalign.types import UserError

Part = dict[str, Any]

DEMONSTRATIONS = 3  # rankings that a judge is shown
LEAST_MASS = 0.5  # of a token's probability that has to be on the answers that were asked for


def text_part(text: str) -> Part:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def parts_of(name: str, value: Any) -> list[Part]:
    """A prompt or an output as parts of a message: texts, and images as PNG in data URIs.

    value: a string; an image ``[C, H, W]`` in 0..1; a video ``[F, C, H, W]``, whose frames go in their order; or a conversation, each turn
    under its role, with images and videos as tensors or by path.

    Errors: UserError for anything else.
    """
    if isinstance(value, str):
        return [text_part(value)]
    if isinstance(value, Tensor) and value.ndim in (3, 4) and value.shape[-3] in (1, 3):
        frames = value[None] if value.ndim == 3 else value
        return [_picture(frame) for frame in frames]
    if isinstance(value, (list, tuple)) and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return [part for turn in value for part in (text_part(f"[{turn.get('role', 'user')}]"), *_content(name, turn["content"]))]
    got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise UserError(f"{name}: got {got}, takes strings, images [3, height, width], videos or conversations")


def _content(name: str, content: Any) -> list[Part]:
    if isinstance(content, str):
        return [text_part(content)]
    parts: list[Part] = []
    for part in content:
        if part.get("type") == "text":
            parts.append(text_part(str(part["text"])))
        elif part.get("type") in ("image", "video"):
            parts += _medium(part)
        else:
            raise UserError(f"{name}: got a part {sorted(part)} of type {part.get('type')!r}, takes text, images and videos")
    return parts


def _medium(part: Mapping[str, Any]) -> list[Part]:
    """An image, or the frames of a video, from wherever it is. Errors: Unreadable where it cannot be used."""
    from mmalign.media import Broken, Limits, footage, image

    [medium] = media_of([{"content": [part]}])
    try:
        if part["type"] == "image":
            return [_picture(image(medium.source, Limits(animated="first")))]
        return [_picture(frame) for frame in (footage(medium.source, Limits()).frames.float() / 255).unbind()]
    except Broken as error:
        raise Unreadable(f"not asked: {part['type']} cannot be used: {error}") from error


def _picture(image: Tensor) -> Part:
    from PIL import Image

    written = io.BytesIO()
    pixels = eight_bits(image.float().expand(3, -1, -1)[None])[0].numpy()
    Image.fromarray(pixels).save(written, format="PNG")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"}}


def message(content: Sequence[Part]) -> list[dict[str, Any]]:
    """One turn of the user's: a plain string where there are no pictures, which every server takes."""
    if all(part["type"] == "text" for part in content):
        return [{"role": "user", "content": "\n".join(part["text"] for part in content)}]
    return [{"role": "user", "content": list(content)}]


def asked_of(prompt: Any) -> str:
    """A prompt in a few words, for the quarantine."""
    return question(prompt)[:500]


def shown(value: Any) -> str:
    """An output in a few words, for the quarantine: a text's beginning, or a picture's size."""
    return value[:500] if isinstance(value, str) else f"{type(value).__name__} {list(getattr(value, 'shape', []))}"


def drawn(principles: Sequence[str], count: int | None, prompt: Any) -> list[str]:
    """``count`` of the principles, the same ones for one prompt whenever it is judged; all of them for None."""
    if count is None or count >= len(principles):
        return list(principles)
    text = asked_of(prompt)
    return sorted(principles, key=lambda principle: hashlib.sha256(f"{text}\0{principle}".encode()).digest())[:count]


# ---- reading


def mass(likely: Mapping[str, float], wanted: Sequence[str]) -> dict[str, float]:
    """Probability of each wanted answer at one token: those of every token that is it, but for spaces and case, together."""
    sums = dict.fromkeys(wanted, 0.0)
    plain = {answer.casefold(): answer for answer in wanted}
    for token, value in likely.items():
        answer = plain.get(token.strip(" \n\t*\"'`▁Ġ").casefold())
        if answer is not None:
            sums[answer] += math.exp(value)
    return sums


def expected(likely: Mapping[str, float], low: int, high: int) -> float:
    """``sum_s s p(s) / sum_s p(s)`` over the digits low..high at one token. Errors: Unreadable where they hold too little of it."""
    probability = mass(likely, [str(score) for score in range(low, high + 1)])
    total = sum(probability.values())
    if total < LEAST_MASS:
        raise Unreadable("no score: most of the probability is on other tokens")
    return sum(int(score) * value for score, value in probability.items()) / total


def preferred(likely: Mapping[str, float], first: str, second: str, tie: str | None = None) -> float:
    """``(p(first) + p(tie) / 2) / (p(first) + p(second) + p(tie))``. Errors: Unreadable where they hold too little of the token."""
    probability = mass(likely, [first, second, *([tie] if tie else [])])
    total = sum(probability.values())
    if total < LEAST_MASS:
        raise Unreadable("no choice: most of the probability is on other tokens")
    return (probability[first] + (probability[tie] / 2 if tie else 0.0)) / total


NUMBER = r"(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?(?![\d.,]*\d|\w|%|\s*/\s*\d)"
SCORE = re.compile(rf"score[^\w-]{{0,6}}[:=][^\w-]{{0,6}}{NUMBER}", re.IGNORECASE)
ALONE = re.compile(rf"[^\w-]*{NUMBER}\W*")


def written_score(answer: Answer, low: float, high: float) -> float:
    """The number after ``Score:``, or a number alone. Errors: Unreadable for none, two different ones, and one outside low..high.

    ``7/10`` is 7 where ``high`` is 10, and no score elsewhere: nothing is clipped or scaled.
    """
    scores = set(SCORE.findall(answer.text))
    alone = ALONE.fullmatch(answer.text)
    if not scores and alone:
        scores = {(alone[1], alone[2] or "")}
    if not scores and answer.cut:
        raise Unreadable("no score: cut off at max_tokens")
    if len(scores) != 1:
        raise Unreadable("more than one score in the answer" if scores else "no score in the answer")
    value, whole = scores.pop()
    if not low <= float(value) <= high or (whole and float(whole) != high):
        raise Unreadable("a score outside of the range")
    return float(value)


def scored_token(answer: Answer) -> Mapping[str, float]:
    """The alternatives at the digit after the last ``Score:``; at the first token, where that is all there is.

    Errors: Unreadable for none.
    """
    before = ""
    place = None
    for number, token in enumerate(answer.tokens):
        if token.text.strip(" *\"'`▁Ġ")[:1].isdigit() and re.search(r"score\W{0,6}[:=]\W{0,6}$", before, re.IGNORECASE):
            place = number
        before += token.text
    if place is None and len(answer.tokens) == 1:
        place = 0
    if place is None:
        raise Unreadable("no score in the answer" if not answer.cut else "no score: cut off at max_tokens")
    return answer.tokens[place].likely


def as_table(scores: Sequence[float | None]) -> Tensor:
    """Scores ``[B]`` float64; NaN for a missing one."""
    return torch.tensor([math.nan if value is None else value for value in scores], dtype=torch.float64)


def words_of(key: str, path: str) -> str:
    """The words of a file, without spaces at their ends. Errors: UserError, by the setting's ``key``, for none."""
    try:
        words = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}: {path} cannot be read: {type(error).__name__}") from error
    if not words:
        raise UserError(f"{key}: {path} is empty, takes a file of words")
    return words


def demonstrated(name: str, path: str | None) -> str:
    """The first rankings of a file as what a judge is shown before it is asked; nothing for None. Errors: UserError for what is none."""
    if path is None:
        return ""
    shown = []
    for number, line in enumerate(words_of(f"{name}.demonstrations", path).splitlines()[:DEMONSTRATIONS], start=1):
        try:
            row = json.loads(line)
            answers = [f"{place}. {answer}" for place, answer in enumerate(row["completions"], start=1)]
            shown.append(f"<request>\n{question(row['prompt'])}\n</request>\n<ranking>\n" + "\n".join(answers) + "\n</ranking>")
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{name}.demonstrations: {path}, line {number}: takes an object with prompt and completions") from error
    return "Responses that were ranked before, the best first:\n" + "\n".join(shown)
