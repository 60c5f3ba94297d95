"""Numbers that rooms' functions take have ranges: what is outside of one is a line of `check`, and what stands by default is inside."""

from __future__ import annotations

import collections.abc
import functools
import importlib
import inspect
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from mmalign.arguments import calls, signatures
from mmalign.arguments.ranges import Range, outside_of
from mmalign.config import check, load
from mmalign.lookup import catalogue
from mmalign.rooms import index
from mmalign.types import UserError

ROOMS = ("policies", "worlds", "guidance", "data", "rewards", "combinations", "evaluation", "methods", "samplers")
COMMANDS = ("commands", "recipes")


def numbers() -> Iterator[tuple[str, str, Range, Any]]:
    """(import path, keyword, range, default) of everything with a range that a config can call."""
    for room in (*ROOMS, *COMMANDS):
        for name, entries in index(f"mmalign.{room}").items():
            for entry in entries:
                function = getattr(importlib.import_module(entry.module), name)
                if not inspect.isfunction(function):
                    continue
                for key, parameter in signatures.parameters(function)[0].items():
                    if parameter.within is not None:
                        default = inspect.signature(function).parameters.get(key)
                        yield f"{entry.module}.{name}", key, parameter.within, None if default is None else default.default


EVERY = list(numbers())


def test_there_are_many_and_their_defaults_are_inside() -> None:
    assert len(EVERY) > 200
    assert [(path, key, default) for path, key, allowed, default in EVERY if outside_of(default, allowed)] == []


def outside(allowed: Range) -> list[float]:
    """Numbers on both sides of a range, its ends where they are not taken, and NaN."""
    below = [*([allowed.low] if allowed.above else []), allowed.low - 1] if allowed.low > -math.inf else []
    above = [*([allowed.high] if allowed.below else []), allowed.high + 1] if allowed.high < 2**60 else []
    return [*(int(value) if float(value).is_integer() else value for value in (*below, *above)), math.nan]


KINDS = tuple(kind for kind in catalogue.KINDS if kind != "configs")


@functools.cache
def listed(kind: str) -> tuple[tuple[str, Any, signatures.Parameter], ...]:
    """(name, function or record, keyword) of every number that something takes which `mmalign list` shows."""
    return tuple(
        (listing.name, made, parameter)
        for listing in catalogue.everything(kind)
        for made in [catalogue.function(listing)]
        for parameter in signatures.parameters(made)[0].values()
        if holds_numbers(parameter.annotation)
    )


def holds_numbers(annotation: Any, *kinds: type) -> bool:
    """Whether a number (of these kinds) may stand under an annotation, alone or in a list or a mapping; functions of numbers are none."""
    if annotation in (kinds or (int, float)):
        return True
    inside = () if typing.get_origin(annotation) in (Literal, collections.abc.Callable) else typing.get_args(annotation)
    return any(holds_numbers(part, *kinds) for part in inside)


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_has_a_range(kind: str) -> None:
    """Also where every number will do: then the range says that it has to be one."""
    assert [f"{name}.{parameter.name}" for name, _, parameter in listed(kind) if parameter.within is None] == []


def test_numbers_of_every_kind_are_there() -> None:
    """So that a kind whose functions nobody finds any more is seen."""
    assert {kind for kind in KINDS if not listed(kind)} == set()
    assert sum(len(listed(kind)) for kind in KINDS) > 500


TRIED = (math.nan, math.inf, -1, -1.0e300, 10**18, 10**400, 1.0e300)


def in_the_form(annotation: Any, number: float) -> Any:
    """A number as an annotation takes numbers: alone, as often as a tuple has places, or under a name."""
    if annotation in (int, float):
        return number
    origin, inside = typing.get_origin(annotation), [part for part in typing.get_args(annotation) if holds_numbers(part)]
    if origin in (dict, collections.abc.Mapping):
        return {"a": in_the_form(inside[-1], number)}
    if origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return [in_the_form(part, number) for part in inside]
    return in_the_form(inside[0], number)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_taken_because_its_range_allows_it_or_is_one_line(kind: str) -> None:
    """In a call from Python, with the key, what it got and what it takes; an int is never taken as large as 10**400."""
    for name, made, parameter in listed(kind):
        for number in TRIED:
            whole = not holds_numbers(parameter.annotation, float)
            if parameter.within is not None and not (whole and isinstance(number, float)):
                value = in_the_form(parameter.annotation, number)
                line = refusal(made, parameter.name, value)
                allowed = number in parameter.within and number != 10**400
                assert (line == "") == allowed, (name, parameter.name, value, line)
                begins, shown = f"{made.__name__}.{parameter.name}: got ", signatures.shown(value)
                assert allowed or (line.startswith(begins + shown) and ", takes " in line and "\n" not in line), line


def refusal(made: Any, key: str, value: Any) -> str:
    """What a call with one keyword that is to be tried, and a thing of no kind for each that is needed, says of the former."""
    if not inspect.isfunction(made):
        try:
            signatures.record(made, {key: value}, made.__name__)
        except UserError as error:
            return str(error) if str(error).startswith(f"{made.__name__}.{key}: ") else ""
        return ""
    keys = {other: parameter.annotation for other, parameter in signatures.parameters(made)[0].items() if parameter.required}
    needed = {other: "x" if Path in (kind, *typing.get_args(kind)) else object() for other, kind in keys.items() if other != key}
    try:
        calls.bound(made, (), {key: value, **needed})
    except UserError as error:
        return str(error) if str(error).startswith(f"{made.__name__}.{key}: ") else ""
    return ""


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_outside_is_a_line(room: str) -> None:
    demo = load("digits/demo")
    for path, key, allowed, _ in EVERY:
        if path.startswith(f"mmalign.{room}."):
            for number in outside(allowed):
                lines = check({**demo, "combine": {"use": path, key: number}})
                assert any(line.startswith(f"combine.{key}: got {number}") for line in lines), (path, key, number, lines)


LINES = [
    ("combine", "constrained", "rate", -1.0, "got -1.0, takes a number above 0"),
    ("combine", "constrained", "window", 0, "got 0, takes 1 or more"),
    ("rewards.proxy", "length", "most", -1, "got -1, takes 0 or more"),
    ("rewards.proxy", "math_answer", "seconds", 0.0, "got 0.0, takes a number above 0"),
    ("rewards.proxy", "grounded_answer", "least", 1.5, "got 1.5, takes a number from 0 to below 1"),
    ("prompts", "prompts", "limit", 0, "got 0, takes 1 or more"),
    ("prompts", "text_prompts", "count", -3, "got -3, takes 1 or more"),
    ("policy", "transformers", "temperature", 0.0, "got 0.0, takes a number above 0"),
    ("policy", "transformers", "max_completion", 0, "got 0, takes 1 or more"),
    ("policy", "forward", "draws", 0, "got 0, takes 1 or more"),
    ("method", "flow_grpo", "clip", -0.2, "got -0.2, takes a number above 0"),
    ("method", "flow_grpo", "eps", -1.0, "got -1.0, takes 0 or more"),
    ("method", "ppo", "gamma", 1.5, "got 1.5, takes 0 to 1"),
    ("method", "ppo", "lam", -0.95, "got -0.95, takes 0 to 1"),
    ("method", "kto", "beta", -0.1, "got -0.1, takes a number above 0"),
    ("method", "grpo", "dual", 0.5, "got 0.5, takes a number above 1"),
    ("method", "raft", "best", 0, "got 0, takes 1 or more"),
    ("method", "dpo", "smoothing", 0.5, "got 0.5, takes a number from 0 to below 0.5"),
    ("method", "rebel", "eta", 0.0, "got 0.0, takes a number above 0"),
    ("method", "remax", "beta", -1.0, "got -1.0, takes 0 or more"),
    ("method", "mnpo", "shares", {"ref": 1.5}, "got {'ref': 1.5}, takes 0 to 1"),
    ("policy", "transformers", "top_p", 0.0, "got 0.0, takes a number from above 0 to 1"),
    ("policy", "transformers", "contrasts", {"blended": 2.0}, "got {'blended': 2.0}, takes 0 to 1"),
    ("rewards.proxy", "jpeg", "quality", 100, "got 100, takes 1 to 95"),
    ("rewards.proxy", "judge", "low", -(10**6), "got -1000000, takes -1,000 to 1,000"),
    ("rewards.proxy", "detection", "thresholds", [0.5, 0.5, math.inf], "got [0.5, 0.5, inf], takes 0 to 1, and finite"),
    ("combine", "weighted_sum", "weights", {"proxy": math.inf}, "got {'proxy': inf}, takes a finite number"),
    ("combine", "lexicographic", "order", {"proxy": 0.0, "b": math.inf}, "got {'proxy': 0.0, 'b': inf}, takes 0 or more, and finite"),
]


@pytest.mark.parametrize(("where", "name", "key", "value", "line"), LINES)
def test_lines(where: str, name: str, key: str, value: Any, line: str) -> None:
    home, _, last = where.rpartition(".")
    node = {"use": name, key: value}
    lines = check({**load("digits/demo"), **({home: {last: node}} if home else {last: node})})
    assert f"{where}.{key}: {line}" in lines, lines
