"""What records say of outputs dimension by dimension, in the order of a reward model's scores."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.records import Pair, Ranking, Record, Thumb, outputs_of
from mmalign.types import Feedback, Method, UserError

LOOK = 4  # batches of records that are looked at


def named(policy: Any, method: Method, coming: Iterator[Record], *, count: int) -> Method:
    """The method, told the names of the policy's scores where records label each by itself (`Method.scores`).

    coming: records, of which the first 4 batches of ``count`` are looked at. Records with one label label all scores
    alike. What ``scales`` says is a warning.

    Errors: UserError for scores that do not stand in twos where a method takes two numbers of a dimension, and as of ``unlabelled``.
    """
    if policy.kind != "score":
        return method
    records = list(islice(coming, LOOK * count))
    if "annotator" in policy.reads:
        _look_at_annotators(records)
    if method.numbers in (0, 2) and len(policy.scores) % 2:
        raise UserError(f"policy.scores: got {len(policy.scores)} names, this method takes numbers in twos; takes an even number of names")
    if method.numbers == 0:
        return method
    dimensions = policy.scores[:: method.numbers]
    labelled = {name for record in records for name in _labels(record)}
    if not labelled & {*dimensions}:
        if labelled and not any(map(_has_one_label, records)):
            raise UserError(f"policy.scores: got {', '.join(policy.scores)}, records are labelled by {', '.join(sorted(labelled))} alone")
        return method
    if method.unit not in ("row", "pair"):
        raise UserError("method: ranks outputs as wholes, and records are labelled by dimension; takes a method of pairs or of ratings")
    told = replace(method, scores=tuple(policy.scores))
    refuse_unlabelled(told, records)
    if remark := scales(told, records):
        warnings.warn(remark, stacklevel=2)
    return told


def refuse_unlabelled(method: Method, records: Sequence[Record], *, key: str = "records") -> None:
    """Errors: UserError for a dimension that none of some records labels. key: of the config, where they are from."""
    labelled = {name for record in records for name in _labels(record)}
    if missing := [name for name in _dimensions(method) if name not in labelled]:
        there = f"they label {', '.join(sorted(labelled))}" if labelled else "they label none"
        raise UserError(f"{key}: nobody labelled {', '.join(missing)} (policy.scores) in the first {len(records)}; {there}")


def _look_at_annotators(records: Sequence[Record]) -> None:
    """A warning for annotators of whom one label is known. Errors: UserError where none is named, and the head reads who it was."""
    who = {
        (record.id, record.prompt if isinstance(record.prompt, str) else ""): record.annotator
        for record in records
        if not isinstance(record, Ranking)
    }
    said = Counter(who.values())  # a short list of records comes by more than once
    if not any(said):
        raise UserError(
            f"records: no annotator is named in the first {len(records)}, and policy.head reads them; takes records that name them"
        )
    once = sorted(name for name, count in said.items() if name and count == 1)
    if once:
        listed = ", ".join(once[:5]) + ", ..." * (len(once) > 5)
        warnings.warn(
            f"records: one label is known of {len(once)} of {len(said)} annotators ({listed}), no taste can be told", stacklevel=3
        )


def scales(method: Method, records: Sequence[Record]) -> str:
    """One line where a method that follows ratings is told some on other scales than others; else ''. Ranges more than twice as wide."""
    if method.unit != "row":
        return ""
    spans = {}
    for name in _dimensions(method):
        known = [rating[name] for record in records for rating in record.ratings if not math.isnan(rating.get(name, math.nan))]
        spans[name] = (min(known, default=0.0), max(known, default=0.0))
    widths = [high - low for low, high in spans.values() if high > low]
    if not widths or max(widths) <= 2 * min(widths):
        return ""
    listed = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in spans.items())
    return f"records: ratings are of mixed scales ({listed}); squared errors of the wider ones count for more"


def labelled(feedback: Feedback, method: Method, records: Sequence[Record]) -> Feedback:
    """Feedback with ``ratings [B, T]``, and of pairs ``strengths [N, T]``, of its records; as it is where the method was told no scores.

    Of pairs without a label in a dimension, two ratings tell: the higher is the better, equal ones are a tie.
    """
    dimensions = _dimensions(method)
    if not dimensions:
        return feedback
    rated = [rating for record in records for rating in (record.ratings or [{}] * len(outputs_of(record)))]
    ratings = _table([[rating.get(name, math.nan) for name in dimensions] for rating in rated])
    columns = {"ratings": ratings}
    if feedback.pairs is not None:
        apart = ratings[feedback.pairs[:, 0]] - ratings[feedback.pairs[:, 1]]
        strengths = torch.where(apart.isnan(), torch.nan, (apart.sign() + 1) / 2)
        if isinstance(records[0], Pair):
            own = _table([[record.labels.get(name, math.nan) for name in dimensions] for record in records])  # type: ignore[union-attr]
            strengths = torch.where(own.isnan(), strengths, own)
        columns["strengths"] = strengths
    each = len(method.scores) // len(dimensions)
    wide = {name: table.repeat_interleave(each, 1) for name, table in columns.items()}
    return replace(feedback, ratings=wide["ratings"], strengths=wide.get("strengths"))


def _dimensions(method: Method) -> tuple[str, ...]:
    return method.scores[:: method.numbers] if method.scores else ()


def _table(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _labels(record: Record) -> set[str]:
    """The dimensions in which a record says something."""
    mappings = [*record.ratings, record.labels] if isinstance(record, Pair) else record.ratings
    return {name for mapping in mappings for name, value in mapping.items() if not math.isnan(value)}


def _has_one_label(record: Record) -> bool:
    if isinstance(record, Pair):
        return not math.isnan(record.strength)
    return not all(map(math.isnan, [record.label] if isinstance(record, Thumb) else record.scores))
