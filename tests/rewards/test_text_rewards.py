"""Rewards on texts: exact_match, math_answer, format, length."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from mmalign.rewards.texts.exact_match import exact_match
from mmalign.rewards.texts.format import format as form
from mmalign.rewards.texts.length import length
from mmalign.rewards.texts.math_answer import given, math_answer
from mmalign.types import UserError


def asked(reward, text, answer):
    return reward([text], ["p"], answer=[answer]).item()


def test_exact_match():
    assert asked(exact_match(), " New  York\n", "new york") == 1
    assert asked(exact_match(case=True), "New York", "new york") == 0
    assert asked(exact_match(), "York", "New York") == 0


@pytest.mark.parametrize(
    ("text", "where", "answer"),
    [
        (r"so \boxed{1} or \boxed{\frac{1}{2}} of 7", "any", Fraction(1, 2)),
        (r"\boxed{\text{red}}", "any", "red"),
        (r"\boxed{x^{2}+1}", "any", "x^{2}+1"),
        (r"\boxed{3", "any", 3),
        (r"\boxed{}", "boxed", None),
        ("2 + 3 = 5\n#### 1,234.50\nDone at 8", "any", Fraction("1234.5")),
        ("It costs $1,000.", "any", 1000),
        ("from 3 to -4.", "any", -4),
        ("a half, 1/2", "last", Fraction(1, 2)),
        ("7 #### none", "hashes", "none"),
        ("the answer is 7", "boxed", None),
        ("no number", "any", None),
        (r"\boxed{(1,2)}", "any", "(1,2)"),
        (r"\boxed{50\%}", "any", 50),
        (r"1/0", "last", "1/0"),
    ],
)
def test_what_answer_is_given(text, where, answer):
    assert given(text, where) == answer


def test_math_answer():
    reward = math_answer()
    assert asked(reward, r"Thus \boxed{18}.", "9 * 2 = 18\n#### 18") == 1
    assert asked(reward, "It is 18.0", "18") == 1
    assert asked(reward, "It is 18, not 19", "18") == 0
    assert asked(reward, "", "18") == 0
    assert asked(math_answer(where="boxed"), "18", "18") == 0
    assert asked(reward, r"\boxed{red}", "red") == 1
    assert math.isnan(asked(reward, "18", " "))


def test_answers_are_a_column_of_the_prompts():
    for reward in (math_answer(), exact_match(), math_answer(column="gold")):
        (column,) = reward.reads
        assert reward(["1", "1", "3"], ["0 + 1?"] * 3, **{column: [1, 2, 3]}).tolist() == [1, 0, 1]
        partly = reward(["1", "1", "3"], ["0 + 1?"] * 3, **{column: [1, None, 3]})
        assert partly[[0, 2]].tolist() == [1, 1] and bool(partly[1].isnan()), "a missing answer is a missing score"
        assert bool(reward(["1"], ["0 + 1?"], **{column: [None]}).isnan().all())
        with pytest.raises(UserError, match=rf"reads the column '{column}' of the prompts; they have anwser, id"):
            reward(["1"], ["0 + 1?"], anwser=["1"], id=[3])
    assert math_answer()([[{"role": "assistant", "content": "5"}]], ["p"], answer=["5"]).tolist() == [1]


def test_format():
    good = "<think>a\nb</think>\n<answer>4</answer>"
    assert form()([good, "x" + good, good + good, "<answer>4</answer>", good.replace("b", "<think>")], ["p"] * 5).tolist() == [
        1,
        0,
        0,
        0,
        0,
    ]
    assert form(r"\d+", whole=False)(["a 5", "a"], ["p"] * 2).tolist() == [1, 0]
    with pytest.raises(UserError, match=r"format\.pattern: '\(' is no regular expression"):
        form("(")


def test_length():
    reward = length(10, least=2, soft=4)
    assert reward([" ".join("a" * n) for n in (1, 2, 6, 7, 8, 10, 11)], ["p"] * 7).tolist() == [-1, 0, 0, -0.25, -0.5, -1, -1]
    assert length(3, unit="characters")(["abc", "abcd"], ["p"] * 2).tolist() == [0, -1]
    with pytest.raises(UserError, match="length: got least=0, most=2, soft=3"):
        length(2, soft=3)


@pytest.mark.parametrize("reward", [math_answer(), exact_match(), form(), length(5)])
def test_mistakes_are_one_line(reward):
    assert (reward.low, reward.high) in ((0, 1), (-1, 0)) and not reward.differentiable
    with pytest.raises(UserError, match=r"got an output that is a int, takes completions"):
        reward([3], ["p"], answer=["3"])
    with pytest.raises(UserError, match=r"got 1 completions for 2 prompts"):
        reward(["3"], ["p", "q"], answer=["3", "4"])
