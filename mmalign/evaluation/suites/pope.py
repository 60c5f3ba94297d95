"""POPE: is there this object in the image?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmalign.arguments.ranges import Count
from mmalign.evaluation.hallucination import pope_scores
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.suite import Item, Suite, filled, picture, read_rows
from mmalign.types import UserError

SPLITS = ("random", "popular", "adversarial")
FIELDS = ("question_id", "image", "text", "label")


def pope(annotations: Path, *, images: Path | None = None, ask: str = "{question}", resamples: Count = RESAMPLES) -> Suite:
    """POPE's questions, from its own files.

    Args:
        annotations: one ``coco_pope_random.json`` (JSON lines of question_id, image, text, label), or a folder of such files; the split
            is in the file's name. Of a folder, ids are ``random/1``, for each split counts its own.
        images: the folder of COCO's val2014 images, for a model to look at.
        ask: what is asked, such as ``{question} Answer the question using a single word or phrase.``

    Intervals are by image.

    Errors: UserError for a row without the fields above, for two files of one split, and no file.
    """
    files = sorted(file for file in annotations.glob("*.json*")) if annotations.is_dir() else [annotations]
    if not files:
        raise UserError(f"annotations: no .json or .jsonl in {annotations}; takes POPE's files")
    names = [next((split for split in SPLITS if split in file.stem), file.stem) for file in files]
    if len(set(names)) < len(names):
        raise UserError(
            f"annotations: {annotations} holds two files of one split ({', '.join(file.name for file in files)}); takes one of each"
        )
    items = []
    for file, split in zip(files, names, strict=True):
        for number, row in enumerate(read_rows(file), start=1):
            if absent := next((field for field in FIELDS if field not in row), None):
                raise UserError(f"annotations: {file}, row {number} has no {absent}; takes {', '.join(FIELDS)}")
            name = f"{split}/{row['question_id']}" if len(files) > 1 else str(row["question_id"])
            known = {"label": str(row["label"]).lower(), "split": split, "image": row["image"]}
            items.append(Item(name, filled(ask, row["text"]), picture(images, row["image"]), known))

    def score(chosen: Sequence[Item], answers: Sequence[str | None]) -> Scores:
        return pope_scores(
            answers, [item.known["label"] for item in chosen], splits=[item.known["split"] for item in chosen],
            clusters=[item.known["image"] for item in chosen], resamples=resamples,
        )  # fmt: skip

    return Suite("pope", items, score, headline=[f"{split}/{name}" for split in names for name in ("f1", "accuracy", "yes_ratio")])
