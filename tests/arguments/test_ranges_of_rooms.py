"""Numbers that rooms' functions take have ranges: what is outside of one is a line of `check`, and what stands by default is inside."""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from mmalign.arguments import signatures
from mmalign.arguments.ranges import Range, outside_of
from mmalign.config import check, load
from mmalign.rooms import index

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


def test_every_number_of_a_method_a_kernel_and_a_window_has_a_range() -> None:
    """Of methods as a config calls them; what is decided by its equation is said with it, and the few that take any number say that."""
    lacking = []
    for room in ("methods", "samplers"):
        for name, entries in index(f"mmalign.{room}").items():
            function = getattr(importlib.import_module(entries[0].module), name)
            if name != "assignment":  # which policies call, and no config
                lacking += [f"{name}.{key}" for key, parameter in signatures.parameters(function)[0].items() if bare(parameter)]
    assert lacking == []


def bare(parameter: Any) -> bool:
    """Whether a parameter takes numbers, and of any size."""
    kinds = {*typing.get_args(parameter.annotation), parameter.annotation}
    return parameter.within is None and bool(kinds & {int, float})


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_outside_is_a_line(room: str) -> None:
    demo = load("digits/demo")
    for path, key, allowed, _ in EVERY:
        if path.startswith(f"mmalign.{room}."):
            for number in outside(allowed):
                lines = check({**demo, "combine": {"use": path, key: number}})
                assert any(line.startswith(f"combine.{key}: got {number}") for line in lines), (path, key, number, lines)


LINES = {
    ("combine", "constrained", "rate", -1.0): "got -1.0, takes a number above 0",
    ("combine", "constrained", "window", 0): "got 0, takes 1 or more",
    ("rewards.proxy", "length", "most", -1): "got -1, takes 0 or more",
    ("rewards.proxy", "math_answer", "seconds", 0.0): "got 0.0, takes a number above 0",
    ("rewards.proxy", "grounded_answer", "least", 1.5): "got 1.5, takes 0 to 1",
    ("prompts", "prompts", "limit", 0): "got 0, takes 1 or more",
    ("prompts", "text_prompts", "count", -3): "got -3, takes 1 or more",
    ("policy", "transformers", "temperature", 0.0): "got 0.0, takes a number above 0",
    ("policy", "transformers", "max_completion", 0): "got 0, takes 1 or more",
    ("policy", "forward", "draws", 0): "got 0, takes 1 or more",
    ("method", "flow_grpo", "clip", -0.2): "got -0.2, takes a number above 0",
    ("method", "flow_grpo", "eps", -1.0): "got -1.0, takes 0 or more",
    ("method", "ppo", "gamma", 1.5): "got 1.5, takes 0 to 1",
    ("method", "ppo", "lam", -0.95): "got -0.95, takes 0 to 1",
    ("method", "kto", "beta", -0.1): "got -0.1, takes a number above 0",
    ("method", "grpo", "dual", 0.5): "got 0.5, takes a number above 1",
    ("method", "raft", "best", 0): "got 0, takes 1 or more",
    ("method", "dpo", "smoothing", 0.5): "got 0.5, takes a number from 0 to below 0.5",
    ("method", "rebel", "eta", 0.0): "got 0.0, takes a number above 0",
    ("method", "remax", "beta", -1.0): "got -1.0, takes 0 or more",
}


@pytest.mark.parametrize(("where", "name", "key", "value"), LINES)
def test_lines(where: str, name: str, key: str, value: float) -> None:
    home, _, last = where.rpartition(".")
    node = {"use": name, key: value}
    lines = check({**load("digits/demo"), **({home: {last: node}} if home else {last: node})})
    assert f"{where}.{key}: {LINES[where, name, key, value]}" in lines, lines
