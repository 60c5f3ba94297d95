"""What a model writes takes time that grows with its length and no faster: for each reader of texts, the inputs that were worst for it."""

from __future__ import annotations

import random
import re
import resource

import pytest

from mmalign.rewards._shared.boxes import json_in
from mmalign.rewards._shared.completions import Pattern, once_each, tagged
from mmalign.rewards.grounding.detection import detection
from mmalign.rewards.grounding.grounded_answer import grounded_answer
from mmalign.rewards.grounding.jigsaw import jigsaw
from mmalign.rewards.grounding.several_points import on_a_line, several_points, three_on_a_line
from mmalign.rewards.texts.by_segment import by_segment
from mmalign.rewards.texts.code_tests import code_of
from mmalign.rewards.texts.exact_match import exact_match
from mmalign.rewards.texts.format import THINK
from mmalign.rewards.texts.format import format as form
from mmalign.rewards.texts.length import length
from mmalign.rewards.texts.repetition import repetition
from mmalign.types import UserError

LONG = 60_000  # a quadratic reader takes some 1e9 steps for so many letters: ten seconds and more
REPEATED = [
    "a", " ", "\n", ".", "!?", "5", "9", "-", ",", "5 ", "1, ", "[", "{", "(", "]", '"', "`", "```", "```\n", "```a ", "<think>",
    "</think>", "<answer>", "</answer>", "<think></think>", "<answer></answer>", "<location>", "cat: ", "cat: [", ":", ": ", "[1,2,3,4]",
    "x: [1,2,3,4", "\\boxed{", "\\boxed{}", "> ", "。", "\t", "#### ", "<think></think><answer>",
]  # fmt: skip
ENDS = ["", "x", "```", "</think>x", "</answer>", "}", "]"]
STARTS = ["", "<think>", "<think></think><answer>", "1", "<location>", "```"]
HOSTILE = [start + part * (LONG // len(part)) + end for part in REPEATED for start in STARTS for end in ENDS]
REWARDS = {
    "jigsaw": (jigsaw(), "order", [1, 0]),
    "jigsaw in a box": (jigsaw(where="boxed"), "order", [1, 0]),
    "jigsaw without thought": (jigsaw(where="boxed", think=False), "order", [1, 0]),
    "grounded_answer": (grounded_answer(), "answer", {"answer": "left", "boxes": {"car": [0, 0, 1, 1]}}),
    "detection": (detection(), "boxes", [[0, 0, 1, 1]]),
    "several_points": (several_points(), "box", [0, 0, 1, 1]),
    "format": (form(), "answer", ""),
    "exact_match": (exact_match(), "answer", "x"),
    "length": (length(3), "answer", ""),
    "repetition": (repetition(), "answer", ""),
}


def seconds() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


@pytest.mark.parametrize("name", REWARDS)
def test_long_texts_take_little_time(name):
    reward, column, answer = REWARDS[name]
    began = seconds()
    scores = reward(HOSTILE, ["p"] * len(HOSTILE), **{column: [answer] * len(HOSTILE)})
    assert not scores.isnan().any()
    assert seconds() - began < 60, "1,640 texts of 60,000 letters, 100 million letters in all"


READERS = {
    "code_of": lambda text: code_of(text, ("python", "")),
    "json_in": json_in,
    "by_segment": lambda text: by_segment(lambda outputs, prompts: [0.0] * len(outputs))([text], ["p"]),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_texts_take_little_time(name):
    began = seconds()
    for text in HOSTILE:
        READERS[name](text)
    assert seconds() - began < 90


# ---- what is read is what it was


def test_an_order_of_too_many_digits_is_none():
    for text in ("7" * 5000, "1, " + "0" * 4301, "-" * 10, "1,,0", ""):
        assert jigsaw()([f"<think>x</think><answer>{text}</answer>"], ["p"], order=[[1, 0]]).item() == 0.2
    for text in ("1, 0", "[1,0]", "( 1 0 )", "1 > 0", "1;0", " 1\n0 "):
        assert jigsaw()([f"<think>x</think><answer>{text}</answer>"], ["p"], order=[[1, 0]]).item() == 1.2


def random_texts(pieces, count=3000):
    generator = random.Random(0)
    return ["".join(generator.choice(pieces) for _ in range(generator.randrange(1, 7))) for _ in range(count)]


def test_forms_are_those_of_the_expressions_that_they_were():
    texts = random_texts(["<think>", "</think>", "<answer>", "</answer>", " ", "\n", "a"], 20_000)
    generator = random.Random(1)
    parts = [generator.choice(["", "", " ", "\n", "a", " a b ", "<think>", "</answer>"]) for _ in range(8_000)]
    texts += [f"<think>{a}</think>{b}<answer>{c}</answer>{d}" for a, b, c, d in zip(*[iter(parts)] * 4, strict=True)]
    was = re.compile(THINK, re.DOTALL)
    order = re.compile(r"\s*<think>(?:(?!<think>).)*?</think>\s*<answer>((?:(?!<answer>).)*?)</answer>\s*", re.DOTALL)
    from mmalign.rewards.grounding.jigsaw import _in_answer

    good = 0
    for text in texts:
        once = all(text.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
        assert once_each(text, ("think", "answer")) == (once and was.fullmatch(text) is not None), text
        match = order.fullmatch(text)
        assert _in_answer(text, True) == (None if match is None else match[1]), text
        tags = re.findall("<answer>(.*?)</answer>", text, flags=re.DOTALL)
        assert tagged(text, "answer") == (tags[-1].strip() if tags else None), text
        good += once_each(text, ("think", "answer"))
    assert good > 100


def test_fences_and_sentences_are_those_of_the_expressions_that_they_were():
    fence = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)
    fenced = 0
    for text in random_texts(["```", "\n", "python", " ", "x", "```py\n", "``"], 20_000):
        bodies = [body for language, body in fence.findall(text) if language.casefold() in ("python", "")]
        assert code_of(text, ("python", "")) == (bodies[-1] if bodies else text), text
        fenced += bool(bodies)
    assert fenced > 1000
    sentence = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|(?=\n)|[。！？]+|$)", re.DOTALL)
    split = by_segment(lambda outputs, prompts: [0.0] * len(outputs))
    for text in random_texts([".", "!", "a", " ", "\n", "。", "...", "b c", "1.5"], 20_000):
        assert [part[:2] for part in split([text], ["p"])[0]] == [match.span() for match in sentence.finditer(text)], repr(text)


def test_named_boxes_are_those_of_the_expression_that_they_were():
    from mmalign.rewards.grounding.grounded_answer import _named

    was = re.compile(r"([^:\[\]]+):\s*\[\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*,\s*(-?[\d.]+)\s*\]")
    count = 0
    for text in random_texts(["cat", ": ", ":", "[1, 2, 3, 4]", "[", "]", ", ", "a dog", "[0,0, .5 ,9.]", "[1,2,3]", "\n"], 20_000):
        named = [name.lstrip(" ,;\n") for name, *_ in was.findall(text)]
        assert [box.label for box in _named(text)] == [name for name in named if name], repr(text)
        count += bool(named)
    assert count > 500
    assert _named("cat: [0, 0, 1.2.3, 4]") == _named("cat: [0, 0, " + "9" * 5000 + ", 4]") == []


def test_three_points_on_a_line_are_found():
    generator = random.Random(0)
    on_lines = 0
    for _ in range(500):
        points = [(float(generator.randrange(12)), float(generator.randrange(12))) for _ in range(generator.randrange(8))]
        slow = any(on_a_line(points[a], points[b], points[c]) for c in range(len(points)) for b in range(c) for a in range(b))
        assert three_on_a_line(points) == slow, points
        on_lines += slow
    assert 50 < on_lines < 450
    many = "<think>x</think>" + str([{"point_2d": [n * n, n]} for n in range(3000)]).replace("'", '"')
    assert several_points()([many], ["p"], box=[[0, 0, 1, 1]]).item() == -1
    with pytest.raises(UserError, match=r"several_points\.most: got 1000, takes 1 to 200, or null"):
        several_points(most=1000)


# ---- expressions of users


EVIL = [  # that ``regex`` has no shortcut for
    (r"(a|a)*$", "a" * 40 + "b"),
    (r"(a|aa)+$", "a" * 60 + "b"),
    (r"(.*)(.*)(.*)(.*)(.*)x$", "a" * 3000 + "xa"),
    (r"(b|bb)*!$", "b" * 60 + "!c"),
    (r"(a|b|ab)*c$", "ab" * 40 + "cd"),
]


@pytest.mark.parametrize(("pattern", "text"), EVIL)
def test_expressions_of_users_have_a_time_limit(pattern, text):
    with pytest.warns(UserWarning, match=r"format\.pattern: took more than 0\.2 s on a text, which counts as no match: '"):
        assert form(pattern, whole=False, seconds=0.2)([text], ["p"]).item() == 0
    assert form("a+", seconds=0.2)(["aaa"], ["p"]).item() == 1


def test_a_limit_of_no_time_is_refused():
    with pytest.raises(UserError, match=r"format\.seconds: got 0, takes more than 0"):
        form(seconds=0)
    with pytest.raises(UserError, match=r"mine: '\[' is no regular expression"):
        Pattern("mine", "[", 1.0)
