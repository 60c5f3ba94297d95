"""An order that a completion gives, against the true one: pieces of an image, clips of a video, points by their depth."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import NotNegative, Share
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

BOX = re.compile(r"\\boxed\{([^{}]*)\}")
WHOLE = re.compile(r"-?\d{1,18}")


def jigsaw(
    *, partial: Share = 0.2, formed: NotNegative = 0.2, where: Literal["answer", "boxed"] = "answer",
    think: bool = True, column: Column = "order",
) -> Scorer:  # fmt: skip
    """``formed`` for the form, and 1 for the right order, ``partial`` times the part of right places for another order of the same pieces.

    0 for a completion without the form, whatever it says; ``formed`` alone for numbers that are no order of the pieces. The task is the
    data's: the raster order of an image's pieces, the order in time of a video's clips, points from the nearest to the farthest.

    Args:
        partial: times the part of right places, for another order; 0 to below 1. formed: what the form is worth, 0 or more.
        column: of the prompts, that holds the true order: a list of whole numbers, or ``3, 1, 2``.
        where: the order stands in ``<answer>...</answer>`` or in ``\\boxed{...}``. think: whether ``<think>...</think>`` goes before it.

    Paper: Visual Jigsaw Post-Training Improves MLLMs, https://arxiv.org/abs/2509.25190; partial credit 0.2 and format 0.2 are its.
    Deviations: its code gives partial credit for more than four pieces alone, to any list of as many different numbers, and takes 0.5
    off for repeated lines (see ``repetition``).

    Errors: UserError, also for a true order that is none.
    """
    if not 0 <= partial < 1 or formed < 0:
        raise UserError(f"jigsaw: got partial={partial}, formed={formed}, takes 0 to below 1, and 0 or more")
    if where not in ("answer", "boxed"):
        raise UserError(f"jigsaw.where: got {where!r}, takes answer or boxed")

    def score(text: str, answer: str) -> float:
        true = _numbers(answer)
        if not true or len(set(true)) < len(true):
            raise UserError(f"jigsaw.column: got {answer[:80]!r}, takes an order of different whole numbers")
        inside = _in_answer(text, think) if where == "answer" else _in_box(text, think)
        if inside is None:
            return 0.0
        order = _numbers(inside)
        if order == true:
            return formed + 1.0
        if order is None or sorted(order) != sorted(true):
            return formed
        return formed + partial * sum(one == other for one, other in zip(order, true, strict=True)) / len(true)

    scorer = against_answers("jigsaw", score, column)
    return replace(scorer, low=0.0, high=1.0 + formed)


def _in_answer(text: str, think: bool) -> str | None:
    """What ``<answer>...</answer>`` holds, with ``<think>...</think>`` before it and nothing else; None for another form."""
    text = text.strip()
    before, opens, rest = text.rpartition("<answer>")
    if not opens or not rest.endswith("</answer>"):
        return None
    before = before.rstrip()
    thought = before.startswith("<think>") and before.endswith("</think>") and before.count("<think>") == 1
    right = thought if think else not before
    return rest.removesuffix("</answer>") if right else None


def _in_box(text: str, think: bool) -> str | None:
    """What the last ``\\boxed{...}`` holds, after ``<think>...</think>``; None for another form."""
    if think:
        thought, closes, rest = text.lstrip().partition("</think>")
        if not closes or not thought.startswith("<think>") or thought.count("<think>") != 1:
            return None
        text = rest
    boxes = BOX.findall(text)
    return boxes[-1] if boxes else None


def _numbers(text: str) -> list[int] | None:
    """The whole numbers of a list such as ``[3, 1, 2]``, ``3, 1, 2`` or ``3 1 2``; None for anything else."""
    text = " ".join(text.split())  # runs of spaces would be read again from each of their places
    text = text[1 if text.startswith(("[", "(")) else 0 :].strip().removesuffix("]").removesuffix(")").strip()
    numbers = re.split(r" ?[,;>] ?| ", text)
    return [int(number) for number in numbers] if all(WHOLE.fullmatch(number) for number in numbers) else None
