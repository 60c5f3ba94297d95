"""What captions invent and what they leave out (CHAIR, object recall), and yes/no questions about objects (POPE).

Pure functions over objects that were extracted and answers that were given: extraction is in ``objects``, files are in ``suites``.

Traps that the published scripts hold, each kept where a number is called by their name, and each with a test:

1. CHAIR_i is pooled over the corpus: invented mentions / mentions, repeats included. The mean over captions is another number.
2. CHAIR_s has two denominators: all captions (Rohrbach et al.), or those with a mention at all (RLHF-V's "response hallucination"). A
   model that falls silent lowers the first and not the second.
3. A caption without a mention has no CHAIR_i of its own; a corpus without one has none either, where the scripts divide by 0.
4. Recall counts each object of an image once, however often it is said.
5. POPE reads an answer up to its first full stop, drops commas, and takes ``No``, ``no`` or ``not`` between spaces for no, and all
   else for yes: an empty answer, a refusal, ``No!`` and ``NO`` count as yes.
6. POPE's released random split has 2,910 rows, 1,500 of them yes: a perfect model has a yes-ratio of .515 there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from mmalign.arguments.ranges import Count, Seed
from mmalign.evaluation.intervals import RESAMPLES, Scores, Sums, estimates, ratio
from mmalign.types import UserError

__all__ = ["chair_scores", "object_scores", "pope_scores", "yes_or_no"]

WORDS = re.compile(r"\w+(?:['’]\w+)?")


def chair_scores(
    mentions: Sequence[Sequence[str] | None], truth: Sequence[Collection[str]], *, answers: Sequence[str | None] | None = None,
    clusters: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES, seed: Seed = 0,
) -> Scores:  # fmt: skip
    """CHAIR and object recall of captions.

    ``chair_i`` = invented mentions / mentions; ``chair_s`` = captions with an invention / captions; ``chair_s_mentioning`` = the same over
    captions with a mention; ``object_recall`` = objects of the images that were said / objects of the images.

    Args:
        mentions: the objects that each caption mentions, in its order, repeats included; None for a caption that is missing, which is
            left out of every number and counted. For Object HalBench, give each mentioned word once.
        truth: the objects that are in each image.
        answers: the captions themselves, for ``answer_words``, their mean length.
        clusters: what each caption belongs to, its image; by default each is its own.

    Paper: Rohrbach, Hendricks, Burns, Darrell, Saenko, "Object Hallucination in Image Captioning" (2018), https://arxiv.org/abs/1809.02156

    Errors: UserError for lists of different lengths.
    """
    texts = [""] * len(mentions) if answers is None else answers
    groups = range(len(mentions)) if clusters is None else clusters
    _same_length(mentions=mentions, truth=truth, answers=texts, clusters=groups)
    rows = [
        None if caption_mentions is None or text is None else _caption(caption_mentions, set(objects), text)
        for caption_mentions, objects, text in zip(mentions, truth, texts, strict=True)
    ]
    known = [row for row in rows if row is not None]
    counts = {
        "captions": [1.0] * len(known),
        "mentions": [float(row["mentions"]) for row in known],
        "invented": [float(len(row["invented"])) for row in known],
        "mentioning": [float(row["mentions"] > 0) for row in known],
        "hallucinating": [float(len(row["invented"]) > 0) for row in known],
        "recalled": [float(len(row["recalled"])) for row in known],
        "objects": [float(row["objects"]) for row in known],
        "words": [float(row["words"]) for row in known],
    }
    places = [place for place, row in zip(groups, rows, strict=True) if row is not None]
    values = estimates(counts, places, _chair if answers is not None else _chair_alone, resamples=resamples, seed=seed)
    missing = len(rows) - len(known)
    published = {
        "CHAIRs": 100 * values["chair_s"].value,
        "CHAIRs_refine": 100 * values["chair_s_mentioning"].value,
        "CHAIRi": 100 * values["chair_i"].value,
        "obj_rec": 100 * values["object_recall"].value,
    }
    if answers is not None and known:
        spaced = [len(text.strip().split(" ")) for text, row in zip(texts, rows, strict=True) if row is not None and text is not None]
        published["avg_word_len"] = sum(spaced) / len(spaced)  # an empty caption has one word there
    return Scores(values, rows, {"answers": len(rows), "missing": missing, "silent": sum(row["mentions"] == 0 for row in known)}, published)


def object_scores(
    mark: Callable[[Sequence[str], Sequence[Any]], Sequence[Mapping[str, Any]]], *, resamples: Count = 500
) -> Callable[..., dict[str, float]]:
    """CHAIR, object recall and length as a run's metric: ``(outputs, prompts) -> {chair_s, chair_i, object_recall, answer_words, ...}``.

    mark: what each answer says that is there and that is not, as in ``training.evaluations.evaluation.EvaluationPlan.mark``: ``mentions``
    (start, end, object, whether it is there) and ``objects`` (all that is there). Each number has its standard error beside it
    (``chair_s_se``), of the bootstrap over prompts.
    """

    def metric(outputs: Sequence[str], prompts: Sequence[Any]) -> dict[str, float]:
        marks = mark(outputs, prompts)
        mentions = [[str(name) for _, _, name, _ in answer["mentions"]] for answer in marks]
        truth = [{str(name) for name in answer["objects"]} for answer in marks]
        clusters = [json.dumps(prompt, sort_keys=True, default=str) for prompt in prompts]
        values = chair_scores(mentions, truth, answers=outputs, clusters=clusters, resamples=resamples).values
        return {**{key: rate.value for key, rate in values.items()}, **{f"{key}_se": rate.error for key, rate in values.items()}}

    return metric


def _caption(mentions: Sequence[str], objects: set[str], text: str) -> dict[str, Any]:
    invented = [name for name in mentions if name not in objects]
    return {
        "mentions": len(mentions),
        "invented": invented,
        "recalled": sorted(set(mentions) & objects),
        "objects": len(objects),
        "words": len(WORDS.findall(text)),
        "chair_i": len(invented) / len(mentions) if mentions else float("nan"),
    }


def _chair_alone(sums: Sums) -> dict[str, Any]:
    return {
        "chair_i": ratio(sums["invented"], sums["mentions"]),
        "chair_s": ratio(sums["hallucinating"], sums["captions"]),
        "chair_s_mentioning": ratio(sums["hallucinating"], sums["mentioning"]),
        "object_recall": ratio(sums["recalled"], sums["objects"]),
    }


def _chair(sums: Sums) -> dict[str, Any]:
    return {**_chair_alone(sums), "answer_words": ratio(sums["words"], sums["captions"])}


def yes_or_no(answer: str) -> tuple[str, bool]:
    """("yes" or "no", whether the answer says either), read as POPE's script reads it; see traps 5 above.

    answer: a text.

    The second is ours: False where the first sentence holds no yes and no no as a word of its own, whatever its case.
    """
    first = answer.split(".")[0]
    words = first.replace(",", "").split(" ")
    label = "no" if {"No", "not", "no"} & set(words) else "yes"
    return label, bool(re.search(r"\b(yes|no|not)\b|n['’]t\b", first, re.IGNORECASE))


def pope_scores(
    answers: Sequence[str | None], labels: Sequence[str], *, splits: Sequence[str] | None = None,
    clusters: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES, seed: Seed = 0,
) -> Scores:  # fmt: skip
    """POPE: accuracy, precision, recall, F1 (yes is the positive class) and the yes-ratio, of each split.

    Args:
        answers: one for each question, as text; None for a missing one, which is left out and counted.
        labels: ``yes`` or ``no``, the truth.
        splits: the split of each question (random, popular, adversarial): names then are ``random/f1``.
        clusters: the image of each question; by default each is its own.

    An answer that says neither counts as yes, as in the published script; ``unparsed`` is how many of them did.

    Paper: Li, Du, Zhou, Wang, Zhao, Wen, "Evaluating Object Hallucination in Large Vision-Language Models" (2023),
    https://arxiv.org/abs/2305.10355

    Errors: UserError for lists of different lengths, and for a label that is neither yes nor no.
    """
    groups = list(range(len(answers)) if clusters is None else clusters)
    names = [""] * len(answers) if splits is None else list(splits)
    _same_length(answers=answers, labels=labels, splits=names, clusters=groups)
    if odd := sorted(set(labels) - {"yes", "no"}):
        raise UserError(f"pope: got the label {odd[0]!r}, takes yes or no")
    rows = [None if answer is None else _question(answer, label) for answer, label in zip(answers, labels, strict=True)]
    values, published = {}, {}
    for split in dict.fromkeys(names):
        inside = [place for place, name in enumerate(names) if name == split and rows[place] is not None]
        chosen = [row for place in inside if (row := rows[place]) is not None]
        counts = {key: [float(row["outcome"] == key) for row in chosen] for key in ("tp", "fp", "tn", "fn")}
        rates = estimates(counts, [groups[place] for place in inside], _pope, resamples=resamples, seed=seed)
        values.update({f"{split}/{key}" if split else key: value for key, value in rates.items()})
    published = {key: value.value for key, value in values.items()}
    unparsed = sum(not row["parsed"] for row in rows if row is not None)
    return Scores(values, rows, {"answers": len(rows), "missing": sum(row is None for row in rows), "unparsed": unparsed}, published)


def _question(answer: str, label: str) -> dict[str, Any]:
    reading, parsed = yes_or_no(answer)
    outcome = ("t" if reading == label else "f") + ("p" if reading == "yes" else "n")
    return {"said": reading, "label": label, "outcome": outcome, "parsed": parsed}


def _pope(sums: Sums) -> dict[str, Any]:
    tp, fp, tn, fn = (np.asarray(sums[key]) for key in ("tp", "fp", "tn", "fn"))
    precision, recall = ratio(tp, tp + fp), ratio(tp, tp + fn)
    return {
        "accuracy": ratio(tp + tn, tp + fp + tn + fn),
        "precision": precision,
        "recall": recall,
        "f1": ratio(2 * precision * recall, precision + recall),
        "yes_ratio": ratio(tp + fp, tp + fp + tn + fn),
    }


def _same_length(**columns: Any) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{size} {name}" for name, size in lengths.items())
        raise UserError(f"scores: got {counts}; takes one of each for every answer")
