"""Words that people marked as wrong: from the page's file through the reader and a tokenizer into what methods learn."""

from __future__ import annotations

import json
import math
import re
import warnings
from functools import partial

import pytest
import torch

import mmalign as mm
from mmalign.labelling.items import Items
from mmalign.labelling.judgements import Judgement, Judgements
from mmalign.needs import CHANGED
from mmalign.recipes._records import next_encoded
from mmalign.records import Pair, RefusedRow
from mmalign.training.records import marks
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

PAIR = {"prompt": "q", "chosen": "a cat", "rejected": "a dog"}
ROWS = [
    {**PAIR, "rejected": "a bad dog", "wrong_chosen": [[0, 1]], "wrong_rejected": [[1, 6]], "strength": 0.75, "id": "0"},
    {**PAIR, "wrong_rejected": [], "id": "1"},
    {**PAIR, "id": "2"},
    {**PAIR, "wrong_chosen": "[[2, 5]]", "wrong_rejected": [[0, 1]], "strength": 0.5, "id": "3"},
]
WEIGHTS = {  # of gamma 5, by hand; the last step of each row is its end
    "0": ([0, 1, 1, 1, 1, 1], [1, 1, 5, 5, 5, 1, 1, 1, 1, 1]),
    "1": ([1] * 6, [1] * 6),
    "2": ([1, 1, 5, 5, 5, 1], [1, 1, 5, 5, 5, 1]),  # nobody marked: where they differ
    "3": ([1, 1, 5, 5, 5, 1], [5, 1, 1, 1, 1, 1]),  # a tie: none is the better one
}


@pytest.fixture(scope="module")
def policy():
    return transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_prompt=88, max_completion=40, device="cpu")


def read(tmp_path, rows):
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return mm.data.texts(str(tmp_path / "labels.jsonl"))


def encoded(policy, method, records, aside=None, count=None):
    draw = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    records, feedback, rollout = next_encoded(
        policy, method, iter(records), count or len(records), draw, {} if aside is None else aside, list, refill=False
    )
    policy.remember(rollout, ["ref"], 8)
    return records, feedback, rollout


def test_marked_words_are_what_dense_dpo_weighs(policy, tmp_path):
    """The loss is that of a float64 sum over letters, weights by hand."""
    method = mm.methods.dense_dpo(beta=0.3)
    records, feedback, rollout = encoded(policy, method, read(tmp_path, ROWS).first(4))
    rollout.held.refs["ref"] = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = policy.steps(rollout, torch.arange(8), needs=method.needs)
    values = method.loss(steps, method.signal(feedback)).values
    ratios, expected = (steps.log_probs.detach() - steps.refs["ref"]).tolist(), []
    for place, record in enumerate(records):
        scores = [
            sum(w * ratios[2 * place + side][t] for t, w in enumerate(of_row)) / sum(of_row)
            for side, of_row in enumerate(WEIGHTS[record.id])
        ]
        gap = 0.3 * (scores[0] - scores[1])
        expected.append(record.strength * math.log1p(math.exp(-gap)) + (1 - record.strength) * math.log1p(math.exp(gap)))
    weighed = (method.weigh(steps.mask) * values).sum()
    assert weighed.item() == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_parts_of_a_rollout_keep_their_marks_and_salt_takes_them_out(policy, tmp_path):
    records, _, rollout = encoded(policy, mm.methods.salt(), read(tmp_path, ROWS).first(4))
    first = [record.id for record in records].index("0")
    rows = torch.arange(2) + 2 * first
    for part, own in ((rollout.take(rows), torch.arange(2)), (rollout.join([rollout, rollout]), 8 + rows)):
        fact = policy.steps(part, own, needs=frozenset({CHANGED})).facts["changed"]
        assert fact.tolist() == [[-1, *[0] * 9], [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]]


def test_the_page_tells_what_is_wrong_of_every_pair_or_of_none(policy, tmp_path):
    items = Items(tmp_path / "labels", {"made": "here"})
    for number in range(2):
        items.add("q", [("text", "so so"), ("text", f"no {number}")], ("one", "other"), id=str(number))
    items.save()
    judged = Judgements(items, tmp_path / "labels.jsonl")
    judged.say(Judgement("0", "ann", ((0,), (1,))))
    assert [record.wrong for record in mm.data.texts(str(tmp_path / "labels.jsonl")).first(1)] == [None]
    judged.say(Judgement("1", "ann", ((0,), (1,)), wrong={"1": [(0, 2)]}))
    records = mm.data.texts(str(tmp_path / "labels.jsonl")).first(2)
    assert {record.id: record.wrong for record in records} == {"0@ann": ((), ()), "1@ann": ((), ((0, "no"),))}


def test_a_token_counts_that_writes_something_of_a_marked_word():
    on = partial(marks.written, ((3, "red cat"),), number=0)
    assert on("so red cats", [(0, 2), (2, 6), (6, 8), (8, 10), (10, 11), (11, 11)]) == [False, True, True, True, False, False]
    assert on("so red cats ", [(0, 2), (2, 6), (6, 11)]) == [False, True, True]  # a template takes spaces off
    shifted = marks.written(((1, "red"),), " red cats", [(0, 2), (2, 3), (3, 8)], 0)
    assert shifted == [True, True, False]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"wrong_rejected": [[4, 6]]}, r"wrong_rejected: got \[4, 6\) of a text of 5 characters"),
        ({"wrong_rejected": [[-1, 2]]}, "takes 0 <= from"),
        ({"wrong_rejected": [[2, 2]]}, "takes 0 <= from"),
        ({"wrong_chosen": [[2, 5], [0, 3]]}, r"wrong_chosen: \[0, 3\) and \[2, 5\) overlap"),
        ({"wrong_chosen": [[0.5, 3]]}, r"takes a list of \[from, to\)"),
        ({"wrong_chosen": 3}, r"takes a list of \[from, to\)"),
        ({"prompt": None, "chosen": "We say yes", "rejected": "We say no", "wrong_chosen": [[0, 2]]}, "read as other words"),
    ],
)
def test_marks_that_are_none_put_a_pair_aside(tmp_path, row, match):
    wrong = {key: value for key, value in {**ROWS[2], "id": "bad", **row}.items() if value is not None}
    source = read(tmp_path, [ROWS[1], wrong])
    source.first(4)
    (why,) = source.broken.values()
    assert re.search(match, why) and "\n" not in why


def test_marks_of_a_text_that_was_changed_put_a_pair_aside(policy, tmp_path):
    good, record = read(tmp_path, [ROWS[1], {**ROWS[0], "wrong_chosen": []}]).first(2)
    if good.id != "1":
        good, record = record, good
    aside = {}
    kept, _, _ = encoded(policy, mm.methods.dense_dpo(), [good, record._replace(second="a mad dog")], aside)
    assert [one.id for one in kept] == ["1"] and "'bad' is marked as wrong at character 2" in aside["0"]
    cut = Pair("q", "a", "a bad dog", wrong=((), ((2, "bad"),)))
    with pytest.raises(RefusedRow, match="in 9 characters, and its tokens write 4"):
        marks.written(cut.wrong[1], cut.second, [(0, 1), (1, 4)], 1)


def test_who_reads_no_marks_says_so(tmp_path):
    records = read(tmp_path, ROWS).first(4)
    with pytest.warns(UserWarning, match="the method reads no marks"):
        marks.remark(mm.methods.dpo(), records)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        marks.remark(mm.methods.dense_dpo(), records)
        marks.remark(mm.methods.dpo(), [record for record in records if record.id in "12"])


def test_salt_takes_marked_words_out_and_learns_none(policy, tmp_path):
    method, records = mm.methods.salt(removed=0.5), read(tmp_path, ROWS[:1]).first(1)
    _, feedback, rollout = encoded(policy, method, [records[0]._replace(strength=1.0)])
    steps = policy.steps(rollout, torch.arange(2), needs=method.needs)
    better, worse = steps.log_probs.tolist()
    expected = -(sum(better[1:6]) + 0.5 * sum(math.log1p(-math.exp(worse[t])) for t in (2, 3, 4))) / 6
    loss = (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
