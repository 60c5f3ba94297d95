"""Text in images: whether what the prompt puts in quotes can be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.rewards._shared.pictures import eight_bits
from mmalign.rewards._shared.scorer import Scorer, on_images
from mmalign.types import UserError

Reader = Callable[[Any], Sequence[str]]
QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')

DIFFERENTIABLE = False


def ocr(*, read: Reader | None = None, language: str = "en", inside: bool = False) -> Scorer:
    """Reward in 0..1: ``1 - d(read, wanted) / max(len(read), len(wanted))``, d the edit distance in characters.

    Wanted is what stands in the first double quotes of a prompt; a prompt without any has no score: NaN. Blanks and case do not
    count. Text that is read beyond the wanted one costs, so that writing it again and again does not pay. Needs images, prompts,
    and the package paddleocr 3 (with paddlepaddle) unless ``read`` is given. Not differentiable.

    Args:
        read: an image ``[H, W, 3]`` uint8 (a numpy array, RGB) -> its lines of text; PaddleOCR by default.
        language: of PaddleOCR.
        inside: flow_grpo's: ``1 - min(d, len(wanted)) / len(wanted)``, and 1 wherever ``wanted`` is part of what was read.

    A reader that fails stops the run with its own words; a failure is never a score of 0. Source: the text-rendering task of
    Flow-GRPO, https://arxiv.org/abs/2505.05470. Weights are PaddleOCR's own, which it downloads; no checksum is known here.
    """
    reader = read or _paddle(language)

    def score(images: Tensor, prompts: list[str]) -> Tensor:
        scores = []
        for image, prompt in zip(eight_bits(images), prompts, strict=True):
            wanted = _wanted(prompt)
            scores.append(float("nan") if not wanted else _closeness(_plain("".join(reader(image.numpy()))), wanted, inside=inside))
        return torch.tensor(scores)

    return on_images("ocr", score, differentiable=DIFFERENTIABLE, rows_at_once=64, low=0.0, high=1.0)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: the fewest characters to insert, remove or replace."""
    row = list(range(len(second) + 1))
    for number, a in enumerate(first, start=1):
        before, row[0] = row[0], number
        for place, b in enumerate(second, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (a != b))
    return row[-1]


def _closeness(text: str, wanted: str, *, inside: bool) -> float:
    if inside:
        return 1.0 if wanted in text else 1 - min(edit_distance(text, wanted), len(wanted)) / len(wanted)
    return 1 - edit_distance(text, wanted) / max(len(text), len(wanted))


def _wanted(prompt: str) -> str:
    match = QUOTED.search(prompt)
    return _plain(match[1] or match[2]) if match else ""


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _paddle(language: str) -> Reader:
    """PaddleOCR's lines of an image, top to bottom. Errors: UserError where the package is missing, or older than 3."""
    try:
        import paddleocr
    except ImportError as error:
        raise UserError(
            f"ocr: needs the package paddleocr, which cannot be imported ({error}); pip install paddleocr paddlepaddle, or read: a function"
        ) from error
    if int(str(paddleocr.__version__).split(".")[0]) < 3:
        raise UserError(f"ocr: got paddleocr {paddleocr.__version__}, takes 3 or later")
    engine = paddleocr.PaddleOCR(lang=language, use_doc_orientation_classify=False, use_doc_unwarping=False, use_textline_orientation=False)

    def read(image: Any) -> list[str]:
        flipped = image[..., ::-1].copy()  # it takes arrays as OpenCV reads them: blue first
        return [str(line) for page in engine.predict(flipped) for line in page["rec_texts"]]

    return read
