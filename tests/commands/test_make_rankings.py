"""Rankings of a policy's answers: beside a teacher's, as far as two judges agree, and as a judge is shown them in the next round."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.commands.make_rankings import agreed
from mmalign.types import Prompt, UserError
from tests.helpers.fake_server import FakeServer, likely, written


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer(lambda body: likely(**{"3": 1.0}))
    yield fake
    fake.kill()


class Speaker:
    """Says the same words to every prompt, in their order."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def sample(self, prompts: list[Any], group: int, rng: torch.Generator) -> Any:
        assert group == len(self.words)
        return SimpleNamespace(outputs=[word for _ in prompts for word in self.words], held=None)


def by(order: str) -> Any:
    """A reward of letters, the first the best; none of others."""
    return lambda outputs, prompts, **_: torch.tensor(
        [-order.find(word[-1]) if word[-1] in order else float("nan") for word in outputs]
    ).double()


def words(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def ranked(folder: Path, prompts: list[Any], policy: Any, **settings: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    out = folder / "rankings.jsonl"
    out.unlink(missing_ok=True)
    counts = mm.commands.make_rankings(policy, prompts, out=str(out), **settings)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_agreement_is_the_longest_order_that_both_have() -> None:
    rng = random.Random(0)
    for _ in range(40):
        one, other = rng.sample("abcdef", 6), rng.sample("abcdefg", 6)
        common = [
            some for length in range(7) for some in itertools.combinations(one, length)
            if [item for item in other if item in some] == [*some]
        ]  # fmt: skip
        assert len(agreed(one, other)) == max(map(len, common)) and tuple(agreed(one, other)) in common


def test_two_judges_agree_on_part_of_a_ranking(tmp_path: Path) -> None:
    policy = Speaker("c", "a", "b", "x a", "d", " ")
    counts, lines = ranked(tmp_path, ["q", "r"], policy, rewards={"black": by("abcd")}, agree={"white": by("bcda")}, group=6)
    assert [line["completions"] for line in lines] == [["b", "c", "d"]] * 2 and lines[0]["ranks"] == [0, 1, 2]
    assert counts == {"rankings": 2, "prompts": 2, "missing": 2, "agreed": 3 / 5}
    record = next(mm.data.texts(str(tmp_path / "rankings.jsonl")).stream(seed=0))
    assert record.outputs == ("b", "c", "d") and record.scores[0] > record.scores[1] > record.scores[2]
    with pytest.raises(UserError, match=r"^make_rankings: none of 1 prompts has two answers in an order; takes more of them \(group\)$"):
        ranked(tmp_path, ["q"], Speaker("a", "b"), rewards={"black": by("ab")}, agree={"white": by("ba")}, group=2)


def test_a_teacher_s_answer_stands_before_all_others_and_the_judge_sees_it(tmp_path: Path, server: FakeServer) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        said = words(body)
        assert "<reference>\nthe teacher says\n</reference>" in said
        return likely(**{"5" if "answer b" in said else "2": 1.0})

    server.answer = answer
    judge = mm.rewards.judge(server={"url": server.url, "model": "m", "backoff": 0.0}, reference="teacher")
    prompts = [Prompt("q", {"teacher": "the teacher says"})]
    _, lines = ranked(tmp_path, prompts, Speaker("answer a", "answer b"), rewards={"judge": judge}, anchor="teacher", group=2)
    assert lines[0]["completions"] == ["the teacher says", "answer b", "answer a"]
    for asked, line in ((["q"], r"^reward judge: .*teacher"), ([Prompt("q", {"teacher": " "})], r"^anchor: prompt 1 has no text")):
        with pytest.raises(UserError, match=line):
            ranked(tmp_path, asked, Speaker("a", "b"), rewards={"judge": judge}, anchor="teacher", group=2)


def test_a_judge_is_shown_rankings_and_goes_by_a_rubric_that_a_judge_of_it_rewrites(tmp_path: Path, server: FakeServer) -> None:
    def said() -> str:
        return words(server.requests[-1])

    ranked(tmp_path, ["q"], Speaker("b", "a"), rewards={"black": by("ab")}, group=2)
    place = {"url": server.url, "model": "m", "backoff": 0.0}
    pairs = tmp_path / "pairs.jsonl"
    scored = {"chosen": "good", "rejected": "bad", "score_chosen": 4}
    pairs.write_text("".join(json.dumps({"prompt": f"q{n}", **scored, "score_rejected": n}) + "\n"
                             for n in range(3)))  # fmt: skip
    server.answer = lambda body: written("Be short.\nBe right.")
    assert mm.commands.rewrite_rubric(str(pairs), place, out=str(tmp_path / "one.txt"), count=2) == {"shown": 2, "words": 4}
    assert "There was none" in said() and said().count("<response score=4>") == 2
    mm.commands.rewrite_rubric(str(pairs), place, out=str(tmp_path / "two.txt"), rubric=str(tmp_path / "one.txt"))
    assert "<rubric>\nBe short.\nBe right.\n</rubric>" in said()
    server.answer = lambda body: likely(**{"4": 1.0})
    judge = mm.rewards.judge(server=place, rubric=str(tmp_path / "two.txt"), demonstrations=str(tmp_path / "rankings.jsonl"))
    assert judge(["x"], ["p"]).tolist() == [4.0]
    assert "Go by this rubric:\nBe short.\nBe right." in said() and "<ranking>\n1. a\n2. b\n</ranking>" in said()
    assert said().index("<ranking>") < said().index("You judge a response")
    server.answer = lambda body: written("")
    with pytest.raises(UserError, match=r"^rewrite_rubric: the server gave no rubric"):
        mm.commands.rewrite_rubric(str(pairs), {**place, "failures": 1}, out=str(tmp_path / "three.txt"))
    assert not (tmp_path / "three.txt").exists()
    with pytest.raises(UserError, match=r"^judge\.rubric: .*none\.txt cannot be read"):
        mm.rewards.judge(server=place, rubric=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"^judge\.demonstrations: .*two\.txt, line 1: takes an object with prompt and completions"):
        mm.rewards.judge(server=place, demonstrations=str(tmp_path / "two.txt"))
