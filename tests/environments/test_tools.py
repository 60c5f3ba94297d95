"""Tools: what a model calls, what it gets, and what becomes of what fails."""

from __future__ import annotations

import ast
import gc
import os
import random
import sys
import threading
import time
import warnings
from concurrent.futures import wait
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.media import Limits, picture
from mmalign.types import UserError


def said(content: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": content, **more}]


def repeat(text: str, times: int = 2) -> str:
    """A text several times."""
    return text * times


def raising(text: str) -> str:
    raise OSError("no  such\nhost")


def test_calls_are_answered_in_their_order_each_conversation_for_itself() -> None:
    environment = mm.environments.tools({"repeat": repeat, "calculate": mm.environments.calculator()})
    talks = [
        said("first <calculate>2 * 3</calculate>, then <repeat>ab</repeat>"),
        said("nothing"),
        said('<repeat>{"text": "x", "times": 3}</repeat>'),
        said("<repeat>{not json}</repeat><search>fox</search>"),
    ]
    replies = environment(talks)
    assert [[turn["content"] for turn in reply or ()] for reply in replies] == [["6", "abab"], [], ["xxx"], ["{not json}{not json}"]]
    assert replies[0][0] == {"role": "tool", "name": "calculate", "content": "6"} and replies[1] is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<raising>x</raising>", "error: OSError: no such host"),
        ("<repeat>x", "error: <repeat> has no </repeat>"),
        ('<repeat>{"word": "x"}</repeat>', "unexpected keyword argument 'word'"),
        ('<repeat>{"times": 2}</repeat>', "missing 1 required positional argument: 'text'"),
    ],
)
def test_what_fails_is_the_reply(text: str, answer: str) -> None:
    [[turn]] = mm.environments.tools({"repeat": repeat, "raising": raising})([said(text)])
    assert answer in turn["content"] and turn["content"].startswith("error: ") and turn["error"] is True


def test_calls_of_the_chat_template_go_before_tags() -> None:
    environment = mm.environments.tools({"repeat": repeat})
    calls = [{"name": "repeat", "arguments": {"text": "a"}}, {"name": "reepat", "arguments": {}}, {"name": "", "error": "is no JSON"}]
    [reply, none] = environment([said("<repeat>b</repeat>", calls=calls), said("<repeat>b</repeat>", calls=[])])
    assert [turn["content"] for turn in reply] == ["aa", "error: no tool is called 'reepat'; there are repeat", "error: is no JSON"]
    assert none is None


def test_a_tool_that_hangs_is_left_behind_and_then_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wake = threading.Event()

    def patient(futures: list[Any], seconds: float) -> Any:  # what does not hang may take its time
        return wait(futures[1:], 300) and wait(futures, 300 if wake.is_set() else seconds)

    monkeypatch.setattr(sys.modules["mmalign.environments.tools"], "wait", patient)
    environment = mm.environments.tools({"wait": lambda text: wake.wait(600), "repeat": repeat}, seconds=0.05, at_once=2)
    [[first], [second]] = environment([said("<wait>1</wait>"), said("<repeat>a</repeat>")])
    assert first["content"] == "error: no answer in 0.05 s" and first["error"] and second["content"] == "aa"
    assert environment([said("<wait>2</wait>")])[0][0]["content"] == "error: no answer in 0.05 s"
    assert environment([said("<wait>3</wait>")])[0][0]["content"] == "error: still at work on 2 calls before"
    wake.set()
    while any(not future.done() for future in environment.hanging["wait"]):  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert environment([said("<wait>4</wait>")])[0][0]["content"] == "True"


def test_what_would_have_answered_is_not_given_up_where_this_process_stood_still(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, looks = threading.Event(), []

    def look(working: list[Any], seconds: float) -> Any:
        looks.append(seconds)
        if len(looks) > 1:
            go_on.set()
        return wait(working, 300 if len(looks) > 1 else 0)  # at the first look all of its time has passed in which nobody ran

    monkeypatch.setattr("concurrent.futures.wait", look)
    [[turn]] = mm.environments.tools({"wait": lambda text: go_on.wait(600)}, seconds=4.0)([said("<wait>1</wait>")])
    assert turn["content"] == "True" and looks == [0.2, 0.2]


def test_long_answers_are_cut_and_empty_ones_are_said() -> None:
    environment = mm.environments.tools({"repeat": repeat, "nothing": lambda text: None}, letters=10)
    [[long], [nothing]] = environment([said('<repeat>{"text": "abc", "times": 5}</repeat>'), said("<nothing>x</nothing>")])
    assert long["content"] == "abcabcabca ... (5 letters more)" and nothing["content"] == "done"


def test_what_tools_are_listed_as() -> None:
    [listed] = mm.environments.tools({"repeat": repeat}).schemas  # type: ignore[attr-defined]
    assert listed["function"] == {
        "name": "repeat",
        "description": "A text several times.",
        "parameters": {
            "type": "object",
            "properties": {"text": {"type": "string"}, "times": {"type": "integer"}},
            "required": ["text"],
        },
    }


@pytest.mark.parametrize("functions", [{}, {"a b": repeat}, {"repeat": 3}])
def test_what_is_no_tool(functions: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="tools"):
        mm.environments.tools(functions)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("13 * 14", "182"), ("-(2 + 3) * 4", "-20"), ("7 / 2", "3.5"), ("7 // 2", "3"), ("7 % 4", "3"), ("2 ** 10", "1024"), ("007", None)],
)
def test_the_calculator(expression: str, value: str | None) -> None:
    calculate = mm.environments.calculator()
    if value is not None:
        assert calculate(expression) == value
        return
    with pytest.raises(ValueError, match="is no expression of numbers"):
        calculate(expression)


@pytest.mark.parametrize(
    "expression",
    ["__import__('os')", "a + 1", "1 if 2 else 3", "2 ** 1000", "9 ** 99 ** 9", "10 ** 31", "(-8) ** 0.5", "1 / 0", "", "True + 1", "1 +"],
)
def test_what_the_calculator_refuses(expression: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError)):
        mm.environments.calculator()(expression)


def test_the_calculator_reads_what_python_reads() -> None:
    rng, read = random.Random(0), 0
    pieces = [*"+-*/()%", *"+-*()", "//", "**", " ", "1", "2", "30", "7.5", ".5", "5.", "1e3", "1_0", "007", "0x1F", "00", "a", "3", "4"]
    calculate = mm.environments.calculator()
    for _ in range(3000):
        expression = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # 5.a
                allowed = all(isinstance(node, NODES) for node in ast.walk(ast.parse(expression.strip(), mode="eval")))
        except SyntaxError:
            allowed = False
        said = calculated(calculate, expression)
        assert (said == "is no expression of numbers") is not allowed, expression
        if allowed and "error" not in said:
            read += 1
            assert said == str(eval(expression.strip())), expression
    assert read > 300


NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.Constant)


def calculated(calculate: Any, expression: str) -> str:
    """A value, what is wrong with the form, or ``error`` for numbers that Python would not divide by, or that are too large."""
    try:
        return str(calculate(expression))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        return "is no expression of numbers" if "is no expression" in str(error) else "error"


def test_tools_that_run_at_the_same_time_answer_as_they_do_alone() -> None:
    def tidied(phase: str, info: dict[str, int]) -> None:
        time.sleep(1e-6)  # as a finaliser that lets others run

    environment, before = mm.environments.tools({"calculate": mm.environments.calculator()}), gc.get_threshold()
    gc.callbacks.append(tidied)
    gc.set_threshold(3, 10**9, 10**9)
    try:
        replies = environment([said(f"<calculate>({n} + 1) * 2 - -3</calculate>") for n in range(150)])
    finally:
        gc.callbacks.remove(tidied)
        gc.set_threshold(*before)
    assert [reply[0]["content"] for reply in replies] == [str((n + 1) * 2 + 3) for n in range(150)]


def test_operations_are_counted() -> None:
    calculate = mm.environments.calculator(operations=1)
    assert calculate("-2 * -3") == "6"
    with pytest.raises(ValueError, match="holds 2 operations, takes at most 1"):
        calculate("1 + 2 + 3")


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX systems")
@pytest.mark.filterwarnings("ignore:code of the model")
@pytest.mark.parametrize(
    ("code", "answer", "error"),
    [
        ("print(sum(range(5)))", "10", None),
        ("Like so:\n```python\nprint(2 + 3)\n```", "5", None),
        ("x = 1", "done", None),
        ("open('kept', 'x').write('1'); import os; print(sorted(os.listdir()))", "['kept', 'program.py']", None),
        ("open('kept', 'x').write('1'); import os; print(sorted(os.listdir()))", "['kept', 'program.py']", None),
        ("print(7)\n1 / 0", "ZeroDivisionError: division by zero", True),
        ("print(", "SyntaxError", True),
        ("raise SystemExit(3)", "error: RuntimeError: ended with 3", True),
        ("x = bytes(10**9)", "MemoryError", True),
        ("while True: pass", "ran past its 2 s", True),
        ("import time; print('so far', flush=True); time.sleep(60)", "ran past its 2 s: so far", True),
    ],
)
def test_python_answers_with_what_it_prints(code: str, answer: str, error: bool | None) -> None:
    seconds = 2.0 if "2 s" in answer else 300.0  # for what ends by itself
    environment = mm.environments.tools({"python": mm.environments.run_python(seconds=seconds, memory=2**28)}, seconds=600.0)
    [[turn]] = environment([said("", calls=[{"name": "python", "arguments": {"code": code}}])])
    assert turn.get("error") is error and (answer in turn["content"] if error else answer == turn["content"])


def test_python_refuses_before_anything_runs() -> None:
    with pytest.raises(UserError, match="seconds"):
        mm.environments.run_python(seconds=0.0)
    with pytest.raises(UserError, match=r"run_python\.isolate: got 'maybe'"):
        mm.environments.run_python(isolate="maybe")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"run_python: got .*memory=1000.* takes .*16 MiB or more"):
        mm.environments.run_python(memory=1000)


def seeing(count: int = 1) -> list[dict[str, Any]]:
    """A prompt with pictures of one pixel's width more each."""
    return [{"role": "user", "content": [{"type": "image", "image": torch.full((3, 40, 60 + n), n / 4)} for n in range(count)]}]


def test_a_tool_may_look_and_show() -> None:
    def both(text: str, pictures: list[Any]) -> list[Any]:
        return [f"{len(pictures)} pictures, {text}", pictures[-1].resize((5, 4)), torch.ones(3, 2, 2)]

    environment: Any = mm.environments.tools({"both": both, "zoom": mm.environments.zoom(units="pixels", smallest=20)})
    assert environment.looks == ["both", "zoom"]
    assert [list(tool["function"]["parameters"]["properties"]) for tool in environment.schemas] == [["text"], ["box", "picture"]]
    [first] = environment([seeing(2) + said('<both>hi</both><zoom>{"box": [50, 0, 60, 20], "picture": 2}</zoom>')[1:]])
    words, small, white = first[0]["content"]
    assert words == {"type": "text", "text": "2 pictures, hi"} and first[1]["content"][0]["type"] == "image"
    sizes = [picture(part["url"], Limits()).size for part in (small, white, *first[1]["content"])]
    assert sizes == [(5, 4), (2, 2), (20, 40)]
    again = seeing() + said("<both>a</both>")[1:] + first[:1] + said("<both>b</both>")[1:]  # those that were shown count too
    assert environment([again])[0][0]["content"][0]["text"] == "3 pictures, b"
    [[broken]] = mm.environments.tools({"none": lambda text: torch.ones(5)})([said("<none>x</none>")])
    assert broken["content"].startswith("error: a picture that cannot be shown: got a tensor") and broken["error"]


@pytest.mark.parametrize(
    ("settings", "box", "part"),
    [
        ({"units": "pixels"}, "10 5 30 25", (10, 5, 30, 25)),
        ({"units": "thousandths"}, [500, 0, 1000, 500], (30, 0, 60, 20)),
        ({"units": "cells", "cells": (2, 3)}, "row 2, column 3", (40, 20, 60, 40)),
        ({"units": "cells"}, "3 1", "takes a row of 1 to 2 and a column of 1 to 2"),
        ({}, "1 2 3", "takes four numbers"),
        ({}, [0, 0, 1001, 10], "takes a box within the picture, of 60 by 40 pixels"),
        ({}, [10, 0, 10, 10], "takes a box within"),
    ],
)
def test_zoom_cuts_out_what_is_named(settings: dict[str, Any], box: Any, part: Any) -> None:
    whole = picture(torch.rand((3, 40, 60), generator=torch.Generator().manual_seed(0)), Limits())
    look = mm.environments.zoom(smallest=1, **settings)
    if isinstance(part, str):
        with pytest.raises(ValueError, match=part):
            look(box, pictures=[whole])
    else:
        assert look(box, pictures=[whole]).tobytes() == whole.crop(part).tobytes()
        with pytest.raises(ValueError, match="there is no picture 2; there are 1"):
            look(box, 2, pictures=[whole])
