"""Prompts drawn by what a policy's answers say of them, and hints where it fails."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import mmalign as mm
from mmalign.types import Prompt, UserError, columns_of, contents


def scores(folder: Path, **by_prompt: list[float | None]) -> str:
    file = folder / "scores.jsonl"
    file.write_text("".join(json.dumps({"prompt": name, "rewards": {"r": values}}) + "\n" for name, values in by_prompt.items()))
    return str(file)


def test_prompts_are_drawn_as_their_answers_differ(tmp_path: Path) -> None:
    """One of four is drawn with P = info / sum(info): 1, 2, 5 and 0 of 8, within 5 deviations of 4,000 draws."""
    file = scores(tmp_path, a=[0.0, 1.0], b=[-1.0, 1.0, 0.0], c=[0.0, 5.0], d=[3.0, 3.0])
    drawn = Counter(mm.data.informative(["a", "b", "c", "d"], reference=file, count=1, seed=seed)[0] for seed in range(4000))
    for name, share in (("a", 1 / 8), ("b", 2 / 8), ("c", 5 / 8)):
        assert abs(drawn[name] / 4000 - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    assert drawn["d"] == 0
    mean = Counter(mm.data.informative(["a", "b"], reference=file, count=1, seed=seed, info="over_mean")[0] for seed in range(2000))
    assert abs(mean["a"] / 2000 - 0.5 / 1.5) < 5 * (2 / 9 / 2000) ** 0.5  # max - mean: .5 and 1


def test_none_is_drawn_twice_and_the_order_is_the_pools(tmp_path: Path) -> None:
    file = scores(tmp_path, a=[0.0, 1.0], b=[0.0, 9.0, None], c=[0.0, 5.0])
    assert mm.data.informative(["c", "a", "b"], reference=file, count=3) == ["c", "a", "b"]


def test_a_pool_that_runs_empty_is_one_line(tmp_path: Path) -> None:
    file = scores(tmp_path, a=[0.0, 1.0], b=[2.0, 2.0], c=[None])
    with pytest.raises(UserError, match=r"^informative\.count: got 2, and the answers to 1 of 2 prompts differ; takes 1 or fewer$"):
        mm.data.informative(["a", "b"], reference=file, count=2)
    with pytest.raises(UserError, match=r"^informative\.reference: .* has no score of 1 of 2 prompts"):
        mm.data.informative(["a", "c"], reference=file, count=1)


def test_hints_where_a_group_fails(tmp_path: Path) -> None:
    file = scores(tmp_path, a=[0.0, 0.9], b=[0.0, 1.0], c=[0.2, 0.1], d=[0.0])
    pool = [
        Prompt("a", {"hint": ["slight", "whole"], "answer": "1"}),
        Prompt("b", {"hint": "no"}),
        Prompt("c", {"hint": "one"}),
        Prompt("d", {"answer": "2"}),
    ]
    for level, a in ((1, "a\nslight"), (2, "a\nwhole"), (9, "a\nwhole")):
        made = mm.data.hinted(pool, reference=file, least=1.0, level=level)
        assert contents(made) == [a, "b", "c\none", "d"] and columns_of(made)["answer"] == ["1", None, None, "2"]
    with pytest.raises(UserError, match=r"^hinted\.column: no prompt has a column 'hints'; takes one of hint, answer"):
        mm.data.hinted(pool, reference=file, least=1.0, column="hints")
    with pytest.raises(UserError, match=r"^hinted\.column: got 3 beside 'a', takes a text, or a list of texts"):
        mm.data.hinted([Prompt("a", {"hint": 3})], reference=file, least=1.0)


def test_prompts_to_refine_an_answer(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad", "score_chosen": 1, "answer": "7"},
            {"prompt": [{"role": "user", "content": "q"}], "chosen": "x", "rejected": "y"}]  # fmt: skip
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = mm.data.refining(str(path), order="Again.")
    turns = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}, {"role": "user", "content": "Again."}]
             for asked, said in (("p", "bad"), ("q", "y"))]  # fmt: skip
    assert contents(made) == turns and columns_of(made) == {"answer": ["7", None]}
    assert [turns[1]["content"] for turns in contents(mm.data.refining(str(path), of="both"))] == ["good", "bad", "x", "y"]
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 2: the prompt is a conversation, takes an order without \{prompt\}"):
        mm.data.refining(str(path), order="{prompt}: {answer}, no:")
    path.write_text(json.dumps(rows[0]))
    assert contents(mm.data.refining(str(path), order="{prompt}: {answer}, no:", of="chosen")) == ["p: good, no:"]
    for settings, line in (({"order": "{answer}"}, r"^prompts\.order: got '\{answer\}'"), ({"of": "all"}, r"^refining\.of: got 'all'")):
        with pytest.raises(UserError, match=line):
            mm.data.refining(str(path), **settings)
