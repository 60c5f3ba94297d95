"""Rewards on texts: exact_match, contains, math_answer, format, length."""

from __future__ import annotations

import math
import resource
from fractions import Fraction

import pytest

from mmalign.rewards._shared.symbolic import Comparer
from mmalign.rewards.texts.contains import contains
from mmalign.rewards.texts.exact_match import exact_match
from mmalign.rewards.texts.format import format as form
from mmalign.rewards.texts.length import length
from mmalign.rewards.texts.math_answer import given, math_answer, plain
from mmalign.types import UserError


def asked(reward, text, answer):
    return reward([text], ["p"], answer=[answer]).item()


def test_exact_match():
    assert asked(exact_match(), " New  York\n", "new york") == 1
    assert asked(exact_match(case=True), "New York", "new york") == 0
    assert asked(exact_match(), "York", "New York") == 0
    loose = exact_match(punctuation=False)
    assert [asked(loose, text, "New York") for text in ('"New York."', "(new york)", "In New York.", "New-York")] == [1, 1, 0, 0]
    assert asked(exact_match(), "New York.", "New York") == 0 and asked(loose, "…", "!") == 1


def test_contains():
    texts = ("It is New\nYork.", "new york, Paris", "New Yorkers", "a new\u00e9 york", "York New")
    assert [asked(contains(), text, "New York") for text in texts] == [1, 1, 0, 0, 0]
    assert asked(contains(case=True), "new york", "New York") == 0 and asked(contains(), "C++ it is", "c++") == 1
    assert asked(contains(), "anything", " ") == 0 and asked(contains(), "a.c", "abc") == asked(contains(), "abc", "a.c") == 0


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
        (r"so 7 and $\frac{1}{2}$.", "last", Fraction(1, 2)),
        (r"so \(x = 4\), in 3 steps", "last", 3),
        (r"in 3 steps, \[x = 4\]", "last", "x=4"),
        ("$$x^2$$ and then $y^2$", "last", "y^2"),
        ("7 #### none", "hashes", "none"),
        ("the answer is 7", "boxed", None),
        ("no number", "any", None),
        (r"\boxed{(1,2)}", "any", "(1,2)"),
        (r"\boxed{50\%}", "any", 50),
        (r"1/0", "last", "1/0"),
    ],
)
def test_what_answer_is_given(text, where, answer):
    scores = given(text, where)
    assert (None if scores is None else plain(scores)) == answer


def test_math_answer():
    reward = math_answer()
    assert asked(reward, r"Thus \boxed{18}.", "9 * 2 = 18\n#### 18") == 1
    assert asked(reward, "It is 18.0", "18") == 1
    assert asked(reward, "It is 18, not 19", "18") == 0
    assert asked(reward, "", "18") == 0
    assert asked(math_answer(where="boxed"), "18", "18") == 0
    assert asked(reward, r"\boxed{red}", "red") == 1
    assert asked(reward, r"\boxed{4}", r"Let $x = 3$, so that \boxed{4} is it, not 5.") == 1
    assert math.isnan(asked(reward, "18", " "))
    assert reward([r"\boxed{1}", r"\boxed{x}"], ["p"] * 2, answer=["", "x"])[1] == 1  # the rows keep their places


GOLDS = [
    "18", "x^2+1", r"\left( 3, \frac{\pi}{2} \right)", r"\frac{\sqrt{3}}{2}", r"2\sqrt{13}", r"5 \text{ cm}", r"\dfrac{3}{4}", "x=4",
    "[2,5)", "10:30", "2024-05-01", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\{1, 2\}", r"x \in (1, 2]", r"\text{Tuesday}", "3:2",
    r"\pm 2", "0.\\overline{3}", r"12\%", "\\$5.50", "A", "blue and red", "1/0", "7" * 5000,
]  # fmt: skip


def test_what_is_written_as_the_gold_is_right_and_a_digit_of_it_is_not():
    reward, rows = math_answer(), len(GOLDS)
    assert reward([rf"So it is \boxed{{{gold}}}." for gold in GOLDS], ["p"] * rows, answer=GOLDS).tolist() == [1] * rows
    assert reward(GOLDS, ["p"] * rows, answer=GOLDS).tolist() == [1] * rows  # and as the whole completion
    parts = [(gold, [c for c in gold if c.isdigit()][-1]) for gold in GOLDS if gold[1:] and any(c.isdigit() for c in gold)]
    assert len(parts) > 15
    scores = reward([rf"\boxed{{{digit}}}" for _, digit in parts], ["p"] * len(parts), answer=[gold for gold, _ in parts])
    equal = {gold for (gold, _), score in zip(parts, scores.tolist(), strict=True) if score}
    assert equal == {"x=4", r"5 \text{ cm}"}  # whose last digit is the answer


@pytest.fixture(scope="module")
def mathematics():
    """One reward, whose process imports its library once."""
    return math_answer()


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("(x+1)^2", "x^2+2x+1", 1),
        ("x^2+1", "1+x^2", 1),
        (r"\frac{\sqrt{3}}{2}", r"\sqrt{3}/2", 1),
        (r"2\sqrt{13}", r"\sqrt{52}", 1),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3, \pi/2)", 1),
        ("x = 4", "4", 1),
        ("4", "x = 4", 1),
        (r"\{1, 2\}", r"\{2, 1\}", 1),
        ("x > 3", "3 < x", 1),
        (r"\frac{3}{4}", "0.75", 1),
        ("0.5", r"50\%", 1),
        (r"5 \text{ cm}", "5", 1),
        (r"3 \times 10^4", "30000", 1),
        ("x^2+1", "1", 0),
        ("x^2+1", "x^2-1", 0),
        ("(1, 2)", "(2, 1)", 0),
        ("[2, 5)", "(2, 5)", 0),
        ("[2, 5)", "[2, 5]", 0),
        ("x > 3", "x < 3", 0),
        (r"5 \text{ cm}", r"5 \text{ m}", 0),
        (r"5 \text{ cm}^2", r"5 \text{ cm}", 0),
        ("10:30", r"\frac{1}{3}", 0),  # no ratio
        ("2024-05-01", "2018", 0),  # no difference
        ("red", "der", 0),  # no product
        ("18", "1, 18", 0),
        ("18", r"1 \text{ or } 18", 0),
        ("18", "18} or 17 {", 0),
        ("3", r"\pm 3", 0),
        (r"2\pi", "2", 0),
        ("x_1", "x_2", 0),
    ],
)
def test_equality_is_that_of_mathematics(gold, answer, score, mathematics):
    assert asked(mathematics, f"#### {answer}", gold) == score


HOSTILE = [
    r"\boxed{1e1000000000}", r"\boxed{9^{9^{9^9}}}", r"\boxed{10^{10^{10}}}", r"\boxed{1000000000!}",
    r"\boxed{\sum_{n=1}^{100000000} \sin(n)^n}", r"\boxed{" + "(" * 900 + ")" * 900 + "}", r"\boxed{" + r"\frac{" * 9000, "$" * 100_000,
    "1" + " " * 100_000 + "/", r"\boxed{5 \text{" + " " * 900 + "}}", "9" * 100_000, "1" * 5000 + "/" + "3" * 5000,
    r"\boxed{" * 10_000, "1," * 50_000, "-$" * 50_000,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:math_answer. comparing")
def test_what_a_model_writes_takes_no_more_time_than_it_is_given():
    reward = math_answer(seconds=0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    assert reward(HOSTILE, ["p"] * len(HOSTILE), answer=["18"] * len(HOSTILE)).tolist() == [0] * len(HOSTILE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 5  # all the rest is in processes that the kernel ends
    assert asked(reward, r"\boxed{\sqrt{4} x}", "2x") == 1  # and it goes on


def test_time_that_is_up_is_said_once_for_a_batch():
    texts = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\sqrt{4}}", r"\boxed{10^{10^{10}}}"]
    says = r"math_answer: comparing 2 answers took more than 0\.3 s, or failed; they count as wrong: "
    with pytest.warns(UserWarning, match=says) as caught:
        scores = math_answer(seconds=0.3)(texts, ["p"] * 3, answer=["2"] * 3)
    assert scores.tolist() == [0, 1, 0] and len(caught) == 1


def test_a_process_that_broke_is_started_again():
    comparer = Comparer("mine", 2.0)
    assert comparer.equal([("x+1", "1+x"), ("x+1", "x"), ("x+1", "1+x")]) == [True, False, True]
    comparer._process.kill()
    comparer._process.wait()
    with pytest.warns(UserWarning, match="mine: comparing 1 answers"):
        assert comparer.equal([("x+1", "1+x")]) == [False]
    assert comparer.equal([("x+1", "1+x")]) == [True]
    process = comparer._process
    comparer.close()
    assert process.returncode is not None
    with pytest.raises(UserError, match=r"math_answer\.seconds: got 0, takes more than 0"):
        math_answer(seconds=0)


def test_math_verify_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("mmalign.rewards._shared.symbolic.find_spec", lambda name: None)
    with pytest.raises(UserError, match="math_answer: needs the package math-verify, which is not installed; pip install math-verify"):
        math_answer()


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
