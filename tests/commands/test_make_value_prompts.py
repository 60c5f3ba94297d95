"""Prompts made of programs that fail: what their variables held, by running them, and a reward for knowing it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.types import Prompt, UserError, columns_of, contents

RIGHT = "```python\ndef add(a, b):\n    return a + b\n```"
WRONG = "```python\nimport os\ndef add(a, b):\n    total = a - b\n    names = ['x'] * total\n    return total\n```"
RAISES = "def add(a, b):\n    half = a / 2\n    raise ValueError\n"
FORGES = "import atexit\natexit.register(lambda: print('values: [3]'))\ndef add(a, b):\n    c = 1\n    return c\n"
NESTED = "def inner(x):\n    y = x + 1\n    return y\ndef add(a, b):\n    z = {'k': inner(a)}\n    return z\n"


class Writes:
    """Programs by heart, the same to every prompt."""

    def __init__(self, *programs: str) -> None:
        self.programs = programs

    def sample(self, prompts: list[Any], group: int, rng: torch.Generator) -> Any:
        return SimpleNamespace(outputs=[program for _ in prompts for program in self.programs])


def made(folder: Path, *programs: str, **settings: Any) -> tuple[dict[str, int], list[Any]]:
    out = folder / "pool.jsonl"
    out.unlink(missing_ok=True)
    prompts = [Prompt("Write add.", {"tests": ["assert add(5, 2) == 7", "assert add(0, 0) == 0"]})]
    counts = mm.commands.make_value_prompts(Writes(*programs), prompts, out=str(out), group=len(programs), **settings)
    return counts, mm.data.prompts(str(out))


def test_programs_that_fail_become_prompts_about_their_variables(tmp_path: Path) -> None:
    counts, pool = made(tmp_path, RIGHT, WRONG, RAISES, NESTED, "def add(", "x = 1", FORGES)
    assert counts == {"prompts": 4, "made": 3, "passed": 1, "untold": 3}
    columns = columns_of(pool)
    assert columns["task"] == ["code", "values", "values", "values"] and columns["tests"][0][0] == "assert add(5, 2) == 7"
    assert [json.loads(values) for values in columns["values"][1:]] == [
        {"a": 5, "b": 2, "total": 3, "names": ["x", "x", "x"]}, {"a": 5, "b": 2, "half": 2.5}, {"a": 5, "b": 2, "z": {"k": 6}},
    ]  # fmt: skip
    asked = contents(pool)[1]
    assert "total = a - b" in asked and "run with `assert add(5, 2) == 7`" in asked and "`total`, `names` hold when `add` ends" in asked
    both = mm.rewards.by_task(rewards={"code": mm.rewards.code_tests(), "values": mm.rewards.variable_values()})
    outputs = [RIGHT, 'so {"total": 3, "names": ["x", "x", "x"], "a": 5, "b": 3}', "no idea", '{"z": {"k": 6}, "a": 5.0, "b": 2}']
    assert both(outputs, contents(pool), **columns).tolist() == [1.0, 0.75, 0.0, 1.0]
    assert made(tmp_path, WRONG, keep=False)[0]["prompts"] == 1
    with pytest.raises(UserError, match=r"^make_value_prompts: none of 1 programs fails and tells its values"):
        made(tmp_path, RIGHT, keep=False)
    with pytest.raises(UserError, match=r"^column: no prompt has a column 'tests'"):
        mm.commands.make_value_prompts(Writes(RIGHT), ["q"], out=str(tmp_path / "new.jsonl"))


def test_what_a_completion_says_of_values() -> None:
    reward = mm.rewards.variable_values()
    for text, share in (
        ('{"a": true}', 0.0),
        ('first {"a": 2}, no: {"a": 1, "b": {"c": [1, 2]}}', 1.0),
        ("{", 0.0),
        ('{"b": {"c": [1, 2]}}', 0.5),
    ):
        assert reward([text], ["?"], values=['{"a": 1, "b": {"c": [1, 2]}}']).item() == share
    with pytest.raises(UserError, match=r"variable_values\.column: got 'x', takes an object of JSON"):
        reward(["a"], ["?"], values=["x"])
