"""SURDS: six questions of space about pictures of traffic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.intervals import RESAMPLES, Interval, Scores, Sums, estimates, ratio
from mmalign.evaluation.suite import Item, Suite, filled, picture, read_rows
from mmalign.types import UserError

TASKS = ("orientation", "depth", "location", "distance", "left_right", "front_behind")
COLUMNS = ("id", "image", "question", "task", "answer", "box")
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
OPTION = re.compile(r"\(?([A-Za-z])[).:](?:\s|$)")


def surds(
    annotations: Path, *, images: Path | None = None, ask: str = "{question}", columns: Mapping[str, str] | None = None,
    tasks: Mapping[str, str] | None = None, resamples: Count = RESAMPLES,
) -> Suite:  # fmt: skip
    """SURDS' six tasks: how often each is right, and the mean of the six, ``score``.

    Its own files were not at hand: what is read is a table of these columns, and ``columns`` and ``tasks`` say what yours are called.

    Args:
        annotations: a JSON list or JSON lines of ``image``, ``question``, ``task``, ``answer`` and, of ``location``, ``box``, the object's
            ``[x1, y1, x2, y2]`` in the unit in which the question asks for it; ``id``, or else rows are numbered.
        images: the folder of the pictures.
        ask: what is asked, such as ``{question} Think first, then answer in <answer></answer>.``
        columns: ours -> yours. tasks: yours -> one of ``orientation`` (which way an object faces), ``depth`` (how far it is), ``location``
            (where it is in the picture), ``distance`` (which of two is nearer), ``left_right``, ``front_behind`` (how two stand).
        resamples: of the bootstrap, over images.

    An answer is what stands in the last ``<answer>``, or all of it. It is right where its words are the true one's, but for case and
    punctuation, or where it begins with the letter of the true option (``B`` of ``B. left``). A ``location`` is right where the point
    that it names, or the middle of its box, is inside the true box. An answer in which no location stands is wrong, and counted.

    Paper: Guo et al., "SURDS: Benchmarking Spatial Understanding and Reasoning in Driving Scenarios with Vision Language Models" (2024),
    https://arxiv.org/abs/2411.13112, for the tasks (*its abstract*). Deviations: its scores of depth and location by how near an answer
    is are not known here; ``rewards.grounded_answer`` has its rewards.

    Errors: UserError for a row without its columns, another task, and a ``location`` without a box.
    """
    if unknown := sorted(set(columns or {}) - {*COLUMNS}):
        raise UserError(f"columns: got {unknown[0]!r}, takes {', '.join(COLUMNS)}, and what each is called in the file")
    if odd := [task for task in (tasks or {}).values() if task not in TASKS]:
        raise UserError(f"tasks: got {odd[0]!r}, takes the file's words and for each one of {', '.join(TASKS)}")
    called = {name: (columns or {}).get(name, name) for name in COLUMNS}
    items = [
        _item(row, number, annotations, images, ask, called, {**{task: task for task in TASKS}, **(tasks or {})})
        for number, row in enumerate(read_rows(annotations), start=1)
    ]

    def score(chosen: Sequence[Item], answers: Sequence[str | None]) -> Scores:
        return surds_scores(answers, [item.known for item in chosen], resamples=resamples)

    there = [task for task in TASKS if any(item.known["task"] == task for item in items)]
    notes = [f"no question of {task}, so that score is the mean of the others" for task in TASKS if task not in there]
    return Suite("surds", items, score, headline=["score", *(f"accuracy/{task}" for task in there)], notes=notes)


def _item(
    row: Mapping[str, Any], number: int, file: Path, images: Path | None, ask: str, called: Mapping[str, str], tasks: Mapping[str, str]
) -> Item:
    where = f"annotations: {file}, row {number}"
    if absent := next((called[name] for name in ("image", "question", "task", "answer") if row.get(called[name]) is None), None):
        raise UserError(f"{where} has no {absent}; takes {', '.join(called.values())} (columns: what they are called here)")
    task = tasks.get(str(row[called["task"]]))
    if task is None:
        raise UserError(f"{where} is of the task {row[called['task']]!r}; takes {', '.join(tasks)} (tasks: what they are called here)")
    box = row.get(called["box"])
    if task == "location" and not _is_box(box):
        raise UserError(f"{where} has the box {box!r}, takes [x1, y1, x2, y2], x1 < x2 and y1 < y2, of a question of location")
    known = {"task": task, "answer": str(row[called["answer"]]), "box": box, "image": str(row[called["image"]])}
    name = str(row.get(called["id"], number))
    return Item(name, filled(ask, str(row[called["question"]])), picture(images, str(row[called["image"]])), known)


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(one, (int, float)) for one in box)
        and box[0] < box[2]
        and box[1] < box[3]
    )


def surds_scores(answers: Sequence[str | None], known: Sequence[Mapping[str, Any]], *, resamples: int = RESAMPLES) -> Scores:
    """Accuracy of each task, and the mean of those there are.

    answers: one for each question, None for one that is missing. known: of each question its task and what is right.
    """
    rows = [None if text is None else _found(text, one) for text, one in zip(answers, known, strict=True)]
    inside = [place for place, row in enumerate(rows) if row is not None]
    there = [task for task in TASKS if any(one["task"] == task for one in known)]
    counts = {
        f"{name}/{task}": [
            float(known[place]["task"] == task and (name == "rows" or bool((rows[place] or {})["right"]))) for place in inside
        ]
        for task in there
        for name in ("rows", "right")
    }

    def formulas(sums: Sums) -> dict[str, Any]:
        rates = {f"accuracy/{task}": ratio(sums[f"right/{task}"], sums[f"rows/{task}"]) for task in there}
        return {"score": sum(rates.values()) / len(rates), **rates}

    values: dict[str, Interval] = estimates(counts, [known[place]["image"] for place in inside], formulas, resamples=resamples)
    unparsed = sum(row is not None and row["location"] is None and one["task"] == "location" for row, one in zip(rows, known, strict=True))
    return Scores(values, rows, {"answers": len(rows), "missing": len(rows) - len(inside), "unparsed": unparsed})


def _found(text: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer says, and whether it is right."""
    said = (TAG.findall(text) or [text])[-1].strip()
    if known["task"] != "location":
        return {"said": said, "location": None, "right": _is_said(said, known["answer"])}
    numbers = [float(number) for number in NUMBER.findall(said)]
    if len(numbers) not in (2, 4):
        return {"said": said, "location": None, "right": False}
    x, y = numbers if len(numbers) == 2 else ((numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2)
    x1, y1, x2, y2 = known["box"]
    return {"said": said, "location": [x, y], "right": x1 <= x <= x2 and y1 <= y <= y2}


def _is_said(said: str, true: str) -> bool:
    if _plain(said) == _plain(true):
        return True
    letters = [match[1].upper() if (match := OPTION.match(f"{one.strip()}\n")) else None for one in (said, true)]
    alone = [one.strip().upper() if len(one.strip()) == 1 else letter for one, letter in zip((said, true), letters, strict=True)]
    return alone[0] is not None and alone[0] == alone[1]


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w\s.-]", " ", text.casefold()).strip(" .").split())
