"""What a row says dimension by dimension: mappings from names to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmalign.data._reading.parsing import number, parsed
from mmalign.media import Broken

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
CHOICES = {"a": 1.0, "b": 0.0, "same": 0.5, "tie": 0.5}  # VideoReward's words


PAIR = ("labels", "ratings_chosen", "ratings_rejected")


def of_pair(row: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The columns of a pair that hold objects, and their names."""
    columns = {key: row[key] for key in PAIR if is_object(row.get(key)) or (key in PAIR[1:] and row.get(key) is not None)}
    return columns, {*columns}


def of_harm(row: Mapping[str, Any], chosen: str, rejected: str, helpful: float) -> tuple[dict[str, Any], set[str]]:
    """What PKU-SafeRLHF's rows say of harm beside of help: ``labels`` in both dimensions, and a rating of each answer, 1 unsafe, -1 safe.

    chosen, rejected: columns of the more helpful answer and of the other. helpful: the strength of that. Nothing where the row
    does not say which is the safer one.
    """
    names = [column.rpartition("_")[2] for column in (chosen, rejected)]
    flags = [f"is_response_{name}_safe" for name in names]
    safer = str(row.get("safer_response_id")).strip()
    if safer not in names or not all(isinstance(row.get(flag), bool) for flag in flags):
        return {}, set()
    ratings = [{"harmful": -1.0 if row[flag] else 1.0} for flag in flags]
    columns = {"labels": {"helpful": helpful, "harmful": float(safer == names[1])}}
    return columns | {"ratings_chosen": ratings[0], "ratings_rejected": ratings[1]}, {"safer_response_id", *flags}


def of_answer(row: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """``ratings`` of an answer, HelpSteer2's columns among them, and the names of all; nothing where it has none."""
    if is_object(row.get("ratings")):
        return {"ratings": row["ratings"]}, {"ratings"}
    steer = {name: row[name] for name in HELPSTEER if name in row}
    return ({"ratings": steer}, {*steer}) if len(steer) == len(HELPSTEER) else ({}, set())


def labels(value: Any) -> dict[str, float]:
    """Dimension -> how probably the better output is the better one there, 0..1, or A, B or same; {} for anything but a mapping."""
    found = {name: _choice(name, one) for name, one in _opened(value).items()} if is_object(value) else {}
    for name, p in found.items():
        if p < 0 or p > 1:
            raise Broken(f"labels: {name} is {p:g}, takes 0..1")
    return found


def _choice(name: str, value: Any) -> float:
    return CHOICES[value.strip().lower()] if isinstance(value, str) and value.strip().lower() in CHOICES else number(value)


def ratings(value: Any, key: str) -> dict[str, float]:
    """Dimension -> number, NaN where there is none. key: of the column, for errors. Errors: Broken for anything but a mapping."""
    if not is_object(value):
        raise Broken(f"{key}: got {type(value).__name__}, takes an object, name -> number")
    return {name: number(one) for name, one in _opened(value).items()}


def of_sides(row: Mapping[str, Any]) -> tuple[dict[str, float], ...]:
    """``ratings_chosen`` and ``ratings_rejected`` of a row, or () where it has none. Errors: Broken for one without the other."""
    sides = [row.get(key) for key in ("ratings_chosen", "ratings_rejected")]
    if all(side is None for side in sides):
        return ()
    return tuple(ratings(side, key) for side, key in zip(sides, ("ratings_chosen", "ratings_rejected"), strict=True))


def mean(rating: Mapping[str, float]) -> float:
    """Of the ratings that are known; NaN without one."""
    known = [value for value in rating.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def is_object(value: Any) -> bool:
    """Whether a column looks as if it held numbers by dimension: an object, or one as JSON."""
    return isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _opened(value: Any) -> Mapping[str, Any]:
    opened = parsed(value) if isinstance(value, str) else value
    if not isinstance(opened, Mapping):
        raise Broken(f"got {type(opened).__name__}, takes an object, name -> number")
    return opened
