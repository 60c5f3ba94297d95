"""CHAIR on COCO: describe the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.hallucination import chair_scores
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.objects import Pieces, Synonyms, coco_truth, marked, mentions, read_json, synonyms
from mmalign.evaluation.suite import Item, Suite, picture, read_rows
from mmalign.types import UserError

ASK = "Please describe this image in detail."


def chair(
    annotations: Path, synonyms_file: Path, *, images: Path | None = None, questions: Path | None = None, ask: str = ASK,
    pieces: Pieces = "rohrbach", resamples: Count = RESAMPLES,
) -> Suite:  # fmt: skip
    """Captions of COCO's images, against the objects that its boxes and its people's captions name.

    Args:
        annotations: COCO's folder with ``instances*.json`` and ``captions*.json``; without captions, inventions are counted that the
            published numbers forgive.
        synonyms_file: ``synonyms.txt`` of CHAIR, or ``synonyms_refine.txt`` of RLHF-V. pieces: see ``objects.synonyms``.
        images: the folder of the images.
        questions: which images and what is asked: JSON lines with ``image_id``, and ``question`` or ``prompt`` where it differs (Object
            HalBench's file). Without it, every image of the annotations that lies in ``images``; or all, where that is not given.
        ask: what is asked of images without a question of their own.

    Intervals are by image. Each row says which words it takes for objects (``mentions``) and which of them are not there.

    Errors: UserError for files that are not there, rows without ``image_id``, and images that the annotations do not know.
    """
    known = synonyms(synonyms_file, pieces=pieces)
    files = {entry["id"]: entry["file_name"] for file in sorted(annotations.glob("instances*.json")) for entry in read_json(file)["images"]}
    prompts = _prompts(questions, files, images, ask)
    truth = coco_truth(annotations, known, images={image for _, image, _ in prompts})
    if odd := next((image for _, image, _ in prompts if image not in truth), None):
        raise UserError(f"questions: image {odd} is in no instances*.json of {annotations}")
    items = [Item(name, words, _file(images, files, image), {"objects": truth[image], "image": image}) for name, image, words in prompts]

    def score(chosen: Sequence[Item], answers: Sequence[str | None]) -> Scores:
        mentions_of = [None if text is None else mentions(text, known) for text in answers]
        names = [None if mentioned is None else [mention.object for mention in mentioned] for mentioned in mentions_of]
        objects = [item.known["objects"] for item in chosen]
        scores = chair_scores(names, objects, answers=answers, clusters=[item.known["image"] for item in chosen], resamples=resamples)
        for row, mentioned, present in zip(scores.rows, mentions_of, objects, strict=True):
            if isinstance(row, dict) and mentioned is not None:
                row["spans"] = marked(mentioned, present)
        return scores

    return Suite("chair", items, score, headline=("chair_s", "chair_i", "object_recall", "answer_words"), notes=_notes(known, annotations))


def _prompts(questions: Path | None, files: Mapping[int, str], images: Path | None, ask: str) -> list[tuple[str, int, str]]:
    """(id, image, question) of each caption that is wanted."""
    if questions is None:
        available = [image for image in sorted(files) if images is None or (images / files[image]).is_file()]
        if not available:
            raise UserError(f"images: {images} holds none of the {len(files)} images of the annotations")
        return [(str(image), image, ask) for image in available]
    rows = read_rows(questions)
    if odd := next((number for number, row in enumerate(rows, start=1) if not str(row.get("image_id", "")).isdigit()), None):
        raise UserError(f"questions: row {odd} of {questions} has no image_id; takes image_id, and question or prompt")
    counts: dict[int, int] = {}
    prompts = []
    for row in rows:
        image = int(row["image_id"])
        counts[image] = counts.get(image, 0) + 1
        name = str(row.get("question_id", image if counts[image] == 1 else f"{image}#{counts[image]}"))
        prompts.append((name, image, str(row.get("question", row.get("prompt", ask)))))
    return prompts


def _file(images: Path | None, files: Mapping[int, str], image: int) -> Path | None:
    return picture(images, files.get(image, str(image)), str(image))


def _notes(known: Synonyms, annotations: Path) -> list[str]:
    notes: list[Any] = [f"{len(set(known.classes.values()))} classes"]
    if not list(annotations.glob("captions*.json")):
        notes.append("no captions*.json: what people say of the images is not taken for true, as the published numbers take it")
    return notes
