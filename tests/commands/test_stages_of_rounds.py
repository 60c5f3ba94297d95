"""Commands that stages of rounds are made of: pools of prompts, and pairs split by how far apart they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.types import Prompt, UserError, columns_of, contents


class Says:
    """A language model that says a word for each prompt, by heart."""

    def __init__(self, **words: str) -> None:
        self.words, self.asked = words, list[str]()

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> list[str]:
        self.asked += prompts
        return [self.words[prompt.split()[-1]] for prompt in prompts]


def test_a_pool_with_what_is_made_of_it(tmp_path: Path) -> None:
    pool, policy = [Prompt("a", {"answer": "1"}), "b", "c", "d"], Says(a="new", b="", c=" a ", d="new")
    counts = mm.commands.make_prompts(pool, out=str(tmp_path / "pool.jsonl"), policy=policy, order="harder: {prompt}", prompts_at_once=3)
    made = mm.data.prompts(str(tmp_path / "pool.jsonl"))
    assert policy.asked == [f"harder: {name}" for name in "abcd"] and contents(made) == ["a", "b", "c", "d", "new"]
    assert columns_of(made)["answer"] == ["1", None, None, None, None]  # of the old one, and not of what was made of it
    assert counts == {"prompts": 5, "made": 1, "left_out": 3}
    counts = mm.commands.make_prompts(pool, out=str(tmp_path / "grown.jsonl"), policy=policy, grow=True, keep=False)
    assert contents(mm.data.prompts(str(tmp_path / "grown.jsonl"))) == ["a new", "c a", "d new"] and counts["prompts"] == 3
    assert mm.commands.make_prompts(pool, out=str(tmp_path / "same.jsonl")) == {"prompts": 4, "made": 0, "left_out": 0}


def test_what_a_pool_may_not_be(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(UserError, match=r"^out: .* is there already"):
        mm.commands.make_prompts(["a"], out=str(tmp_path / "there.jsonl"))
    with pytest.raises(UserError, match=r"^order: got 'harder', takes words with \{prompt\} in them$"):
        mm.commands.make_prompts(["a"], out=str(tmp_path / "a.jsonl"), order="harder")
    with pytest.raises(UserError, match=r"^prompts: none of 1 that were made says anything new"):
        mm.commands.make_prompts(["a"], out=str(tmp_path / "a.jsonl"), policy=Says(a="a"), keep=False)
    assert not (tmp_path / "a.jsonl").exists()


def test_pairs_are_split_by_their_gap(tmp_path: Path) -> None:
    rows = [{"prompt": str(number), "score_chosen": high, "score_rejected": 0.5} for number, high in enumerate((0.5, 0.75, 1.0, -1.0))]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    easy = mm.commands.filter_pairs(str(path), out=str(tmp_path / "easy.jsonl"), least_gap=0.25)
    hard = mm.commands.filter_pairs(str(path), out=str(tmp_path / "hard.jsonl"), most_gap=0.25)
    assert easy == {"pairs": 2, "left_out": 2} == hard
    assert contents(mm.data.prompts(str(tmp_path / "easy.jsonl"))) == ["2", "3"]
    assert contents(mm.data.prompts(str(tmp_path / "hard.jsonl"))) == ["0", "1"]
    with pytest.raises(UserError, match=r"^filter_pairs: none of 4 pairs is left \(their scores are 0 to 1\.5 apart\); takes other gaps$"):
        mm.commands.filter_pairs(str(path), out=str(tmp_path / "none.jsonl"), least_gap=2.0)
    with pytest.raises(UserError, match=r"got neither least_gap nor most_gap"):
        mm.commands.filter_pairs(str(path), out=str(tmp_path / "none.jsonl"))
    path.write_text('{"prompt": "a", "score_chosen": null, "score_rejected": 1}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl, line 1: takes an object with numbers under score_chosen and score_rejected$"):
        mm.commands.filter_pairs(str(path), out=str(tmp_path / "none.jsonl"), least_gap=0.0)
