"""A benchmark as data: questions with their images, and a function from the answers to numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmalign.evaluation.intervals import Scores
from mmalign.types import UserError

__all__ = ["Item", "Suite"]

IDS = ("id", "question_id", "image_id")
TEXTS = ("answer", "response", "text", "caption", "model_answer", "output")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Item:
    """One question.

    id: its name in files of answers. question: the text. image: its file; None for a question without. known: what its scorer has to know:
    a label, the true objects, a reference answer.
    """

    id: str
    question: str
    image: Path | None = None
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """The question as a conversation, its image first."""
        pictures = [] if self.image is None else [{"type": "image", "path": str(self.image)}]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": self.question}]}]


@dataclass(frozen=True)
class Suite:
    """A benchmark: its questions, and how answers are scored.

    name: of the suite. items: its questions. score: ``(items, answers) -> Scores``, an answer for each item in order, None for one that
    is missing. headline: numbers to show first. judged: whether scoring asks a judge. notes: lines that belong beside the numbers. call:
    arguments of the sampler that the benchmark asks for, such as a length. whole: how many questions there were before ``first``.

    Errors: UserError for no items, and for two with one id.
    """

    name: str
    items: Sequence[Item]
    score: Callable[[Sequence[Item], Sequence[str | None]], Scores]
    headline: Sequence[str] = ()
    judged: bool = False
    notes: Sequence[str] = ()
    call: Mapping[str, Any] = field(default_factory=dict)
    whole: int = 0

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"{self.name}: its files hold no question")
        ids: set[str] = set()
        for item in self.items:
            if item.id in ids:
                raise UserError(f"{self.name}: two questions with the id {item.id}; takes one of each")
            ids.add(item.id)

    def first(self, count: int | None) -> Suite:
        """The first ``count`` questions, and a note that it is not all of them; all for None."""
        if count is None or count >= len(self.items):
            return self
        if count < 1:
            raise UserError(f"limit: got {count}, takes 1 or more")
        note = f"the first {count} of {len(self.items)} questions"
        return replace(self, items=list(self.items)[:count], notes=[*self.notes, note], whole=len(self.items))

    def refuse_missing_images(self) -> None:
        """Errors: UserError that counts the images that are not there, and names one."""
        absent = [item.image for item in self.items if item.image is not None and not item.image.is_file()]
        if absent:
            raise UserError(f"images: {len(absent)} of {len(self.items)} are not there, {absent[0]} among them; takes the images' folder")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines. Errors: UserError with the line's number."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"annotations: {file} is not there; takes a file of JSON or JSON lines")
    text = file.read_text(encoding="utf-8")
    try:
        stored = json.loads(text)
    except ValueError:  # more than one value: JSON lines
        stored = [_line(file, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if isinstance(stored, dict) and "imgToEval" in stored:
        stored = list(stored["imgToEval"].values())
    rows = [stored] if isinstance(stored, dict) else stored
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"annotations: {file} holds something else than objects; takes a list of objects, or one on each line")
    return rows


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"annotations: {file}, line {number} is not JSON ({' '.join(str(error).split())})") from error


def read_answers(path: str | Path) -> dict[str, str | None]:
    """id -> answer, of a file of answers in any of the benchmarks' forms. A null is an answer that is missing.

    The id stands under ``id``, ``question_id`` or ``image_id``; the answer under ``answer``, ``response``, ``text``, ``caption``,
    ``model_answer`` or ``output``; the first of each counts. Where no row has an id, as in POPE's own answer files, they are ``#1``,
    ``#2``, ... in their order.

    Errors: UserError for a row without either, and for an id twice with different answers.
    """
    answers: dict[str, str | None] = {}
    rows = read_rows(path)
    if not any(key in row for row in rows for key in IDS):
        rows = [{"id": f"#{number}", **row} for number, row in enumerate(rows, start=1)]
    for number, row in enumerate(rows, start=1):
        name, text = next((key for key in IDS if key in row), None), next((key for key in TEXTS if key in row), None)
        if name is None or text is None:
            takes = f"an id ({', '.join(IDS)}) and an answer ({', '.join(TEXTS)})"
            raise UserError(f"answers: row {number} of {path} has {', '.join(row) or 'nothing'}; takes {takes}")
        value = row[text]
        if value is not None and not isinstance(value, str):
            raise UserError(f"answers: row {number} of {path}: got {value!r}, takes text, or null for a missing answer")
        if str(row[name]) in answers and answers[str(row[name])] != value:
            raise UserError(f"answers: {path} answers {row[name]} twice, and differently; takes one answer for each question")
        answers[str(row[name])] = value
    return answers


def picture(folder: Path | None, name: str, *others: str) -> Path | None:
    """The file of an image in a folder: under its name, or under another of its names with any ending; None without a folder.

    Where none is there, the path under its first name.
    """
    if folder is None:
        return None
    first = folder / Path(name).name
    stems = [Path(other).name for other in (name, *others)]
    guesses = (folder / f"{stem}{ending}" for stem in stems for ending in ("", *PICTURES))
    return next((guess for guess in (first, *guesses) if guess.is_file()), first)


def filled(template: str, question: str) -> str:
    """The question inside what the user wants to ask: ``{question} Answer yes or no.`` Errors: UserError without ``{question}``."""
    if "{question}" not in template:
        raise UserError(f"ask: got {template!r}, takes text with {{question}} in it")
    return template.replace("{question}", question)
