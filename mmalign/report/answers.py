"""Answers in words, before training and after: the image, what was asked, what is said, and what of it is there."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmalign.report.plots import short
from mmalign.report.read import RunData

MOST_CASES = 12
MOST_STEPS = 24


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer. kind: ``there``, ``invented``, ``gained`` or ``lost`` (``nats``, over the reference), or empty."""

    text: str
    kind: str = ""
    nats: float = 0.0

    @property
    def strength(self) -> float:
        """Of its colour, 0 to 1: full from two nats on."""
        return round(min(1.0, abs(self.nats) / 2), 2)


@dataclass(frozen=True)
class Said:
    """A turn before an answer, the policy's or the environment's. images: ``data:`` addresses."""

    role: str
    text: str
    images: list[str]


@dataclass(frozen=True)
class Answer:
    """An answer at a step. ``unsaid``: objects that are there and not said; ``known``: whether anybody marked it; ``scores`` in words.

    turns: what was said before it, in a conversation.
    """

    step: int
    pieces: list[Piece]
    unsaid: list[str]
    known: bool
    scores: str = ""
    turns: tuple[Said, ...] = ()


@dataclass(frozen=True)
class Case:
    """One question with its images (``data:`` addresses) and its answers, in order of steps."""

    question: str
    images: list[str]
    answers: list[Answer]


def cases(run: RunData, notes: list[str]) -> list[Case]:
    """The first answer to each of the first questions, at no more than `MOST_STEPS` evaluations, the first and the last among them."""
    steps = spaced(run.answers)
    if not steps:
        return []
    firsts = list({_question(row): place for place, row in reversed(list(enumerate(steps[-1][1])))}.values())
    chosen = sorted(firsts)[:MOST_CASES]
    addresses: dict[str, str | None] = {}
    shown = []
    for place in chosen:
        question, images = _question(steps[-1][1][place])
        of_case = [(step, row) for step, rows in steps if (row := _same(rows, place, (question, images))) is not None]
        answers = [replace(marked(step, row), turns=_turns(row, run.path, addresses)) for step, row in of_case]
        there = [address for name in steps[-1][1][place].get("images") or [] if (address := _address(run.path, name, addresses))]
        shown.append(Case(question, there, answers))
    if any(address is None for address in addresses.values()):
        notes.append("some images of answers could not be read")
    return shown


def count(run: RunData) -> int:
    """How many different questions there are answers to."""
    return len({_question(row) for row in run.answers[-1][1]}) if run.answers else 0


def spaced(answers: Sequence[tuple[int, list[dict[str, Any]]]]) -> list[tuple[int, list[dict[str, Any]]]]:
    """At most `MOST_STEPS` of them, evenly chosen, the first and the last among them."""
    if len(answers) <= MOST_STEPS:
        return list(answers)
    places = {round(number * (len(answers) - 1) / (MOST_STEPS - 1)) for number in range(MOST_STEPS)}
    return [answers[place] for place in sorted(places)]


def marked(step: int, row: Mapping[str, Any]) -> Answer:
    """An answer in pieces; marks that overlap an earlier one, or lie outside, are left out."""
    text, place, pieces = str(row.get("answer") or ""), 0, []
    marks = [mark for mark in row.get("mentions") or [] if isinstance(mark, (list, tuple)) and len(mark) == 4]
    for start, end, _, there in sorted(marks, key=lambda mark: (mark[0], mark[1])):
        if place <= start < end <= len(text):
            pieces += [Piece(text[place:start])] if start > place else []
            pieces.append(Piece(text[start:end], "there" if there else "invented"))
            place = end
    pieces += [Piece(text[place:])] if place < len(text) else []
    pieces = pieces if marks else credited(text, row.get("credits") or [])
    mentioned = {str(name) for _, _, name, _ in marks}
    unsaid = [str(name) for name in row.get("objects") or [] if str(name) not in mentioned]
    scores = " · ".join(f"{name} {short(value)}" for name, value in (row.get("scores") or {}).items())
    return Answer(step, pieces, unsaid, "mentions" in row, scores)


def _turns(row: Mapping[str, Any], folder: Path, known: dict[str, str | None]) -> tuple[Said, ...]:
    return tuple(
        Said(turn["role"], turn["text"], [address for name in turn["images"] if (address := _address(folder, name, known))])
        for turn in row.get("turns") or []
    )


def credited(text: str, credits: Sequence[Sequence[float]]) -> list[Piece]:
    """An answer by how much likelier than under the reference each token is; credits that overlap an earlier one are left out."""
    place, pieces = 0, list[Piece]()
    for start, end, nats in credits:
        if place <= start < end <= len(text):
            pieces += [Piece(text[int(place) : int(start)])] if start > place else []
            pieces.append(Piece(text[int(start) : int(end)], "gained" if nats > 0 else "lost", nats))
            place = int(end)
    return pieces + ([Piece(text[place:])] if place < len(text) else [])


def _question(row: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return str(row.get("prompt", "")), tuple(str(name) for name in row.get("images") or [])


def _same(rows: Sequence[Mapping[str, Any]], place: int, question: tuple[str, tuple[str, ...]]) -> Mapping[str, Any] | None:
    """The row of the same question, which stands at the same place unless another evaluation wrote it."""
    if place < len(rows) and _question(rows[place]) == question:
        return rows[place]
    return next((row for row in rows if _question(row) == question), None)


def _address(folder: Path, name: Any, known: dict[str, str | None]) -> str | None:
    if not isinstance(name, str):
        return None
    if name not in known:
        file = folder / "answers" / name
        try:
            inside = file.resolve().is_relative_to((folder / "answers").resolve())
            data = file.read_bytes() if inside and file.is_file() and file.suffix == ".png" else b""
        except (OSError, ValueError, RuntimeError):  # no right to read, a name with a zero byte, a link to itself
            data = b""
        known[name] = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}" if data else None
    return known[name]
