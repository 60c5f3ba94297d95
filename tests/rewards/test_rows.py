"""Rewards that know the row they score: by its task, its label, its number, its reference code."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.rewards.texts.code_structure import code_structure
from mmalign.rewards.texts.number_error import number_error
from mmalign.rewards.texts.refusal import refusal
from mmalign.types import Prompt, UserError

NAN = math.nan


def near(values):
    return pytest.approx(values, nan_ok=True, abs=1e-12)


# ---- by task


def counted(value, seen):
    def reward(outputs, prompts, **columns):
        seen.append((list(outputs), list(prompts), {name: list(values) for name, values in columns.items()}))
        return torch.full((len(prompts),), value)

    return reward


def test_each_reward_is_asked_about_its_own_rows_alone():
    one, two = [], []
    reward = mm.rewards.by_task(rewards={"a": counted(1.0, one), "b": counted(2.0, two)}, others="b")
    scores = reward(["w", "x", "y", "z"], ["p", "q", "r", "s"], task=["a", "c", None, "a"], key=[1, 2, 3, 4])
    assert scores.tolist() == near([1, 2, NAN, 1])
    assert one == [(["w", "z"], ["p", "s"], {"task": ["a", "a"], "key": [1, 4]})]
    assert two == [(["x"], ["q"], {"task": ["c"], "key": [2]})]


def test_what_another_task_reads_may_be_missing():
    reward = mm.rewards.by_task(rewards={"sum": mm.rewards.exact_match(), "chat": mm.rewards.exact_match(column="wish")})
    assert reward.reads == {"task", "answer", "wish"}
    columns = {"task": ["sum", "chat", "chat"], "answer": ["4", None, None], "wish": [None, "hi", None]}
    assert reward(["4", "hi", "hi"], ["?"] * 3, **columns).tolist() == near([1, 1, NAN])


def test_gradients_pass_through_the_task_that_has_them():
    bright = mm.rewards.on_latents(of=lambda outputs, prompts: outputs.flatten(1).sum(1))
    reward = mm.rewards.by_task(rewards={"a": bright, "b": bright})
    outputs = torch.ones(3, 2, requires_grad=True)
    reward(outputs, ["p"] * 3, task=["a", None, "b"]).nansum().backward()
    assert reward.differentiable and reward.of_latents and outputs.grad.tolist() == [[1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mm.rewards.by_task(rewards={}), r"by_task\.rewards: got \{\}"),
        (lambda: mm.rewards.by_task(rewards={"a": len}, others="b"), r"by_task\.others: got 'b', takes one of the tasks: a"),
        (
            lambda: mm.rewards.by_task(rewards={"a": counted(1, [])})(["x"], ["p"], task=["b"]),
            r"row 0 has the task 'b'; takes a, or others",
        ),
        (lambda: mm.rewards.by_task(rewards={"a": counted(1, [])})(["x"], ["p"], kind=["a"]), r"reads the column 'task'.*they have kind"),
        (
            lambda: mm.rewards.by_task(rewards={"a": lambda outputs, prompts: {"u": torch.ones(1)}})(["x"], ["p"], task=["a"]),
            r"by_task\.rewards\.a: answers parts \(u\)",
        ),
    ],
)
def test_mistakes_about_tasks_are_one_line(make, says):
    with pytest.raises(UserError, match=says):
        make()


# ---- refusals by label, and what is compared among answers alone

FORMED = "<think>why</think> "
SAID = [
    FORMED + "I can\N{RIGHT SINGLE QUOTATION MARK}t do that.",
    "I cannot.",
    FORMED + "Sure: glue.",
    FORMED,
    "Sure.",
    FORMED + "x" * 300 + " I cannot",
]


@pytest.mark.parametrize(("label", "wanted"), [("harmful", [1, 0, 0, 0, 0, 0]), (False, [-2, -2, 1, 0, 0, 1])])
def test_refusal_by_label(label, wanted):
    assert refusal(over=-2.0)(SAID, ["p"] * 6, harmful=[label] * 6).tolist() == wanted


def test_who_answers_a_benign_prompt_is_eligible():
    parts = refusal(apart=True)(SAID, ["p"] * 6, harmful=[0] * 6)
    assert parts["eligible"].tolist() == [0, 0, 1, 0, 0, 1]
    assert refusal(apart=True)(SAID, ["p"] * 6, harmful=[1] * 6)["eligible"].tolist() == [0] * 6


def test_a_label_that_says_neither():
    with pytest.raises(UserError, match=r"refusal\.column: got 'maybe' in 'harmful', takes true"):
        refusal()(["x"], ["p"], harmful=["maybe"])


def test_helpfulness_is_normalised_among_the_eligible_of_a_group():
    parts = {
        "safe": torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0]).double(),
        "ok": torch.tensor([1.0, 1.0, 0.0, 1.0, NAN]).double(),
        "help": torch.tensor([1.0, 3.0, 100.0, 7.0, 7.0]).double(),
    }
    by = mm.combinations.among(reward="help", eligible={"ok": 0.5}, eps=0.0, scale=2.0)
    half = 2 / math.sqrt(2)
    assert by(parts, torch.tensor([0, 0, 0, 1, 1]), ["p"] * 5).tolist() == near([1 - half, 1 + half, -1, 1, NAN])
    missing = {**parts, "help": torch.tensor([NAN, 3.0, NAN, 7.0, 7.0]).double()}
    assert by(missing, torch.tensor([0, 0, 0, 1, 1]), ["p"] * 5).tolist() == near([NAN, 1, -1, 1, NAN])


def test_plain_helpfulness_learns_to_refuse_and_among_does_not():
    """On a benign prompt a judge that likes short words best likes refusals: the sum prefers them, ``among`` any answer."""
    said = [FORMED + "I cannot.", FORMED + "a long and useful answer", FORMED + "an answer"]
    parts = {**{f"r/{name}": v for name, v in refusal(apart=True, over=-0.1)(said, ["p"] * 3, harmful=[0] * 3).items()}}
    parts["help"] = torch.tensor([9.0, 1.0, 2.0]).double()
    group = torch.tensor([0, 0, 0])
    plain = mm.combinations.weighted_sum(weights={"r/right": 1.0, "help": 1.0})(parts, group, ["p"] * 3)
    ours = mm.combinations.among(reward="help", eligible={"r/eligible": 0.5})(parts, group, ["p"] * 3)
    assert int(plain.argmax()) == 0 and ours.argsort().tolist() == [0, 1, 2]


# ---- numbers and code


@pytest.mark.parametrize(
    ("settings", "text", "true", "wanted"),
    [
        ({}, "between 3 and 8", "10", 0.8),
        ({}, "25", "10", 0.0),
        ({"most": 5.0, "of": "difference"}, "it is -2", "0", 0.6),
        ({"where": "answer"}, "<answer>1/2</answer> of 7", "0.5", 1.0),
        ({"where": "boxed"}, r"\boxed{4} and 9", "4", 1.0),
        ({"where": "answer"}, "4", "4", 0.0),
        ({}, "1/0", "4", 0.0),
        ({}, "9" * 400, "4", 0.0),
        ({}, "4", "", NAN),
    ],
)
def test_number_error(settings, text, true, wanted):
    assert number_error(**settings)([text], ["p"], answer=[true]).tolist() == near([wanted])


@pytest.mark.parametrize(("true", "of"), [("none", "value"), ("0", "value"), ("?", "difference")])
def test_a_true_number_that_is_none(true, of):
    with pytest.raises(UserError, match=r"number_error\.column: got '.*', takes a number"):
        number_error(of=of)(["4"], ["p"], answer=[true])


ADDER = "module add(input a, input b, output s); assign s = a ^ b; endmodule"


def test_structure_is_what_is_left_without_names_and_comments():
    renamed = "// mine\nmodule plus(input x, input y, output z);\n  assign z = x ^ y; /* so */\nendmodule"
    reward = code_structure()
    assert reward([f"```verilog\n{renamed}\n```"], ["p"], reference=[ADDER]).item() == 1.0
    other, half = ADDER.replace("^", "&"), "module add(input a, input b, output s); endmodule"
    scores = reward([other, half, ADDER[: len(ADDER) // 2], "", "hello"], ["p"] * 5, reference=[ADDER] * 5).tolist()
    assert all(0 < score < 1 for score in scores[:3]) and scores[3:] == [0, pytest.approx(0, abs=0.2)]
    assert reward([half], ["p"], reference=[ADDER]).item() == reward([ADDER], ["p"], reference=[half]).item()


def test_subtrees_are_counted_with_their_multiplicity():
    from mmalign.rewards.texts.code_structure import _parser, subtrees

    parser = _parser("verilog")
    one, two = (subtrees(parser, f"module m; {'wire a; ' * count}endmodule") for count in (1, 2))
    assert one.total() < two.total() and (one & two).total() < one.total()  # the module's own shape differs
    deep = subtrees(parser, "module m; assign a = " + "(" * 3000 + "b" + ")" * 3000 + "; endmodule")
    assert deep.total() > 3000


def test_a_language_that_is_not_installed():
    with pytest.raises(UserError, match=r"code_structure: cobol needs the packages tree-sitter and tree-sitter-cobol"):
        code_structure(language="cobol")
    with pytest.raises(UserError, match=r"code_structure\.language: got 'os; x'"):
        code_structure(language="os; x")


# ---- prompts by what the model scored at first


@pytest.fixture
def scored(tmp_path):
    rows = {"a": [0.5], "b": [0.0, 0.0], "c": [0.2, None], "d": [0.2], "e": [0.1, 0.4]}
    file = tmp_path / "reference.jsonl"
    file.write_text("".join(json.dumps({"prompt": key, "rewards": {"bleu": row, "other": [1]}}) + "\n" for key, row in rows.items()))
    return [Prompt(key, {"answer": key * 2}) if key == "c" else key for key in rows], str(file)


def test_the_hardest_prompts_in_their_order(scored):
    prompts, file = scored
    assert mm.data.hardest(prompts, reference=file, reward="bleu", keep=2) == ["b", prompts[2]]
    assert mm.data.hardest(prompts, reference=file, reward="bleu", keep=5) == prompts  # not by their scores
    assert mm.data.hardest(prompts, reference=file, reward="bleu", keep=3, above=0.0) == [prompts[2], "d", "e"]


@pytest.mark.parametrize(
    ("more", "settings", "says"),
    [
        ([], {"reward": "bleu", "keep": 5, "above": 0.2}, r"hardest\.keep: got 5, and 2 of 5 prompts are left"),
        (["new"], {"reward": "bleu", "keep": 1}, r"reference.jsonl has no score of 1 of 6 prompts"),
        ([], {"keep": 1}, r"hardest\.reward: got None, takes a reward of .*: bleu, other"),
        ([], {"reward": "bleu", "keep": 0}, r"hardest\.keep: got 0"),
    ],
)
def test_mistakes_about_the_hardest_are_one_line(scored, more, settings, says):
    prompts, file = scored
    with pytest.raises(UserError, match=says):
        mm.data.hardest([*prompts, *more], reference=file, **settings)


# ---- rendered and compared

SPANNED = (
    "Here:<TABLE border=1><tr><th colspan='2'>Dose &amp; time</th></tr>"
    "<tr><td rowspan=2>a</td><td>b</td></tr><tr><td><b>c</b></td></tr></table>."
)


def test_cells_of_tables():
    from mmalign.rewards.texts.render_and_compare import cells_of

    assert cells_of(SPANNED) == [(0, 0, 1, 2, "Dose & time"), (1, 0, 2, 1, "a"), (1, 1, 1, 1, "b"), (2, 1, 1, 1, "c")]
    assert cells_of("| x |\n\nor\n| h | i |\n|---|:-:|\n| 1 |  |\n") == [
        (0, 0, 1, 1, "h"),
        (0, 1, 1, 1, "i"),
        (1, 0, 1, 1, "1"),
        (1, 1, 1, 1, ""),
    ]
    assert cells_of("<table><tr><td>1</table> then <table><td>2") == [] and cells_of("<table><td>2</td>") == [(0, 0, 1, 1, "2")]
    assert cells_of("none") == [] and len(cells_of("<td>" * 9000)) == 4096


def test_what_looks_alike_scores_high():
    pytest.importorskip("skimage", reason="needs the extra metrics, which CI installs")
    from mmalign.rewards.texts.render_and_compare import formula_picture, table_picture

    true = table_picture(SPANNED)
    said = [SPANNED, SPANNED.replace("b", "x"), SPANNED.replace("rowspan=2", ""), "| a | b |\n| c | d |", "nothing"]
    scores = mm.rewards.render_and_compare()(said, ["?"] * 5, picture=[true] * 5).tolist()
    assert scores[0] == pytest.approx(1, abs=1e-6) and scores[0] > scores[1] > scores[2] > scores[3] > scores[4] == 0
    true = formula_picture(r"$\frac{a}{b}$")
    said = [r"It is \[ \frac{a}{b} \]", r"$\frac{a}{c}$", "$a + b$", r"$\nonsense{a}$", "$$"]
    scores = mm.rewards.render_and_compare(of="formula")(said, ["?"] * 5, picture=[true] * 5).tolist()
    assert scores[0] == pytest.approx(1, abs=1e-6) and scores[0] > scores[1] > scores[2] and scores[3:] == [0, 0]
    with pytest.raises(UserError, match=r"render_and_compare\.column: .*gone\.png"):
        mm.rewards.render_and_compare()(["x"], ["?"], picture=["gone.png"])


def test_a_rule_that_is_broken_and_steps_without_their_words():
    count = lambda outputs, prompts, marks, **_: torch.tensor([math.nan if not text else len(text) + marks[0] for text in outputs])  # noqa: E731
    reward = mm.rewards.below(count, least=4)
    assert reward(["ab", "abc", "abcd", ""], ["p"] * 4, marks=[1, 1, 1, 1]).nan_to_num(9).tolist() == [1, 0, 0, 9]
    assert set(reward.reads) == {"marks"}
    seen = []
    look = lambda outputs, prompts, **_: (seen.extend(outputs), torch.zeros(len(outputs)))[1]  # noqa: E731
    mm.rewards.mathematics_alone(look)(["We have x = 3, so\nI add a 4 to it.\nThus \\boxed{7}!", "no words"], ["p", "p"])
    assert seen == ["x = 3,\n4\n\\boxed{7}!", ""]
    with pytest.raises(UserError, match=r"below\.reward: answered a dict"):
        mm.rewards.below(lambda outputs, prompts: {}, least=0)(["a"], ["p"])
