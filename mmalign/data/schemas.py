"""How the data sets people have say which of two outputs is better: a row (a mapping) -> two outputs and a strength.

A schema yields ``Draft``s, media still undecoded: most rows hold one pair, HPDv2's lists hold several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from mmalign.media import Broken
from mmalign.types import UserError

Row = Mapping[str, Any]


class Draft(NamedTuple):
    """A pair before its media are decoded."""

    prompt: str
    first: Any
    second: Any
    strength: float
    id: str


Schema = Callable[[Row, str], Iterator[Draft]]


def pickapic(row: Row, name: str) -> Iterator[Draft]:
    """Pick-a-Pic v1 and v2: ``caption, jpg_0, jpg_1, label_0, label_1, has_label``; 0.5 in both labels is a tie."""
    name = _name(row, "ranking_id", name)
    yield Draft(_text(row, "caption"), _there(row, "jpg_0"), _there(row, "jpg_1"), _labels(row), name)


def _labels(row: Row) -> float:
    """``label_0`` as a share of both labels, NaN where ``has_label`` is false or a label is missing."""
    first, second = _number(row.get("label_0")), _number(row.get("label_1"))
    if row.get("has_label") is False or math.isnan(first + second) or first + second == 0:
        return math.nan
    return first / (first + second)


def hpdv2(row: Row, name: str) -> Iterator[Draft]:
    """HPDv2: ``prompt``, a list of images (``image`` or ``image_path``), and what people said of them.

    ``human_preference``: 1 for the better of two images (training set); or ``rank``, the place of each image, 0 the best
    (test set), which gives every pair of them; or ``raw_annotations``, one ranking for each person (a list, or a mapping with one
    under ``rank``), of which the share that puts the first image before the second is the strength.
    """
    images = row.get("image") or row.get("image_path") or row.get("file_path") or row.get("images")
    if not isinstance(images, (list, tuple)) or len(images) < 2:
        raise Broken("takes a list of two or more images under image, image_path or file_path")
    prompt, name = _text(row, "prompt"), _name(row, "id", name)
    people = row.get("raw_annotations")
    ranks = [person.get("rank") if isinstance(person, Mapping) else person for person in people] if isinstance(people, list) else None
    for a, b in combinations(range(len(images)), 2):
        if ranks:
            wins = [1.0 if person[a] < person[b] else 0.5 if person[a] == person[b] else 0.0 for person in _full(ranks, len(images))]
            strength = sum(wins) / len(wins)
        else:
            strength = _listed_preference(row, a, b, len(images))
        yield Draft(prompt, images[a], images[b], strength, f"{name}:{a}-{b}" if len(images) > 2 else name)


def _listed_preference(row: Row, a: int, b: int, count: int) -> float:
    liked, rank = row.get("human_preference"), row.get("rank")
    values = liked if liked is not None else rank
    if values is None:
        return math.nan
    (numbers,) = _full([values], count)
    better, worse = (numbers[a], numbers[b]) if liked is not None else (numbers[b], numbers[a])
    return 1.0 if better > worse else 0.5 if better == worse else 0.0


def _full(rankings: list[Any], count: int) -> list[list[float]]:
    lists = [ranking if isinstance(ranking, (list, tuple)) else [] for ranking in rankings]
    numbers = [[_number(value) for value in ranking] for ranking in lists]
    if any(len(ranking) != count or any(math.isnan(value) for value in ranking) for ranking in numbers):
        raise Broken(f"takes one number for each of {count} images in every ranking")
    return numbers


def columns(names: Mapping[str, str]) -> Schema:
    """One pair to a row, in columns of any name: ``prompt``, ``chosen``, ``rejected`` and, optional, ``strength`` and ``id``.

    names: what those are called in the data, where it is otherwise. strength: the probability that ``chosen`` is the better one,
    1 where there is no such column; empty and null mean that it is not known.
    Errors: UserError for a name that is none of these.
    """
    known = ("prompt", "chosen", "rejected", "strength", "id")
    if strange := sorted(set(names) - set(known)):
        raise UserError(f"records.columns.{strange[0]}: unknown; takes {', '.join(known)}")
    called = {key: names.get(key, key) for key in known}

    def schema(row: Row, name: str) -> Iterator[Draft]:
        strength = _number(row[called["strength"]]) if called["strength"] in row else 1.0
        if not math.isnan(strength) and not 0 <= strength <= 1:
            raise Broken(f"{called['strength']} is {strength}, takes 0..1")
        own = _name(row, called["id"], name)
        yield Draft(_text(row, called["prompt"]), _there(row, called["chosen"]), _there(row, called["rejected"]), strength, own)

    return schema


def guess(row: Row, names: Mapping[str, str] | None) -> Schema:
    """The schema that a row looks like. Raises Broken with its columns, where it looks like none."""
    if names is not None:
        return columns(names)
    if {"jpg_0", "jpg_1"} <= row.keys():
        return pickapic
    if {"chosen", "rejected"} <= row.keys():
        return columns({})
    if row.keys() & {"human_preference", "raw_annotations", "rank"}:
        return hpdv2
    raise Broken(
        f"columns {', '.join(sorted(map(str, row)))} look like no known schema (Pick-a-Pic, HPDv2, prompt/chosen/rejected); "
        "takes columns: {prompt: ..., chosen: ..., rejected: ..., strength: ...}"
    )


def _name(row: Row, key: str, name: str) -> str:
    return name if row.get(key) in (None, "") else str(row[key])


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"no text under {key!r}")
    return value.strip()


def _there(row: Row, key: str) -> Any:
    if row.get(key) is None:
        raise Broken(f"nothing under {key!r}")
    return row[key]


def _number(value: Any) -> float:
    """A number, or NaN for what is missing. Raises Broken for other text."""
    if value is None or value == "":
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Broken(f"got {value!r}, takes a number") from error
