"""Search trees: their formulas by hand, and pairs of steps that say which one leads to more."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.commands._trees import Node, backed_up, bound, contrasts, leaf
from mmalign.types import Prompt, UserError


class Draws:
    """Says one of some steps, by its seed; nothing of them depends on what stands before."""

    def __init__(self, *steps: str) -> None:
        self.steps, self.asked = steps, list[Any]()

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[str]:
        self.asked += prompts
        return [self.steps[int(torch.randint(len(self.steps), (1,), generator=torch.Generator().manual_seed(seed)))] for seed in seeds]


def searched(folder: Path, policy: Any, prompts: list[Any], reward: Any, **settings: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    out = folder / "steps.jsonl"
    out.unlink(missing_ok=True)
    counts = mm.commands.search_steps(policy, prompts, {"right": reward}, out=str(out), **settings)
    return counts, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_tree_goes_where_most_is_promised_and_remembers_what_came_back() -> None:
    root = Node("", None)
    one, two = (Node(step, None, parent=root) for step in "ab")
    root.children += [one, two]
    three = Node("c", None, parent=one)
    one.children.append(three)
    for node, reward in ((three, 1.0), (two, 0.25), (one, 0.5)):
        backed_up(node, reward)
    assert [(node.visits, node.total) for node in (root, one, two, three)] == [(3, 1.75), (2, 1.5), (1, 0.25), (1, 1.0)]
    backed_up(three, math.nan)  # a judge that failed: looked for, and nothing known
    assert (one.visits, one.known, one.mean) == (3, 2, 0.75) and (three.visits, three.mean) == (2, 1.0)
    for node in (root, one, three):
        node.visits -= 1
    two.said = 0.9
    assert bound(one, explore=0.5, share=0.5) == 0.75 + 0.5 / 2 * math.sqrt(3) / 3
    assert bound(two, explore=0.5, share=0.5) == (0.25 + 0.9) / 2 + 0.5 / 2 * math.sqrt(3) / 2
    assert leaf(root, explore=0.0, share=1.0) is three and leaf(root, explore=9.0, share=1.0) is two
    assert [*contrasts(root, share=1.0, least_gap=0.0)] == [(root, one, two)]
    assert [*contrasts(root, share=0.0, least_gap=0.0)] == [
        (root, two, one)
    ]  # the critic's word alone, and of one nothing is said: its mean
    assert [*contrasts(root, share=1.0, least_gap=0.5)] == [] and three.depth == 2


def test_a_missing_reward_is_no_reward(tmp_path: Path) -> None:
    """A judge that cannot read "bad" says nothing of it: no pair calls it worse."""

    def reward(outputs: list[str], prompts: list[str], **_: Any) -> torch.Tensor:
        return torch.tensor([math.nan if "bad" in text else 0.5 + 0.5 * ("good" in text) for text in outputs]).double()

    counts, lines = searched(tmp_path, Draws("good", "bad", "odd"), ["q: "], reward, simulations=12, width=9, depth=1, share=1.0)
    assert {(line["chosen"], line["rejected"]) for line in lines} == {("good", "odd")}
    assert counts["missing"] > 0 and counts["solved"] == 1.0


def test_lines_that_lead_to_more_are_chosen(tmp_path: Path) -> None:
    """Two lines: "good" and then "end" is worth 1, "good" alone .5, all else 0; an answer ends where no line break follows."""

    def reward(outputs: list[str], prompts: list[str], **_: Any) -> torch.Tensor:
        return torch.tensor([(0.5 if text.startswith("good\n") else 0.0) + 0.5 * (text == "good\nend") for text in outputs]).double()

    policy = Draws("good\nmore", "bad\n", "end")
    counts, lines = searched(tmp_path, policy, ["q: ", "r: "], reward, simulations=24, width=6, depth=3, share=1.0)
    first = [line for line in lines if line["prompt"] in ("q: ", "r: ")]
    assert len(first) == 2 and all(line["chosen"] == "good\n" and line["rejected"] in ("bad\n", "end") for line in first)
    assert all(0.5 < line["strength"] < 1 and line["score_chosen"] > line["score_rejected"] for line in lines)
    behind = next(line for line in lines if line["prompt"] == "q: good\n")
    assert behind["chosen"] == "end" and behind["score_chosen"] == 1.0 and counts["solved"] == 1.0
    assert counts["pairs"] == len(lines) and counts["steps"] == len(policy.asked) and "q: good\n" in policy.asked
    assert lines == searched(tmp_path, Draws(*policy.steps), ["q: ", "r: "], reward, simulations=24, width=6, depth=3, share=1.0)[1]
    record = mm.data.texts(str(tmp_path / "steps.jsonl")).first(1)[0]
    assert 0.5 < record.strength < 1 and record.prompt in {line["prompt"] for line in lines}
    with pytest.raises(UserError, match=r"^search_steps: no two steps to 1 prompts differ"):
        searched(tmp_path, Draws("same"), ["q"], reward)
    with pytest.raises(UserError, match=r"a prompt is a conversation, and steps follow it as text; takes texts, or an environment"):
        searched(tmp_path, policy, [[{"role": "user", "content": "q"}]], reward)


def test_turns_are_steps_where_there_is_an_environment(tmp_path: Path) -> None:
    environment = mm.environments.tools({"calculate": mm.environments.calculator()})
    policy = Draws("<calculate>2 * 3</calculate>", "<calculate>2 + 3</calculate>", "6", "5")
    reward, critic = mm.rewards.exact_match(), lambda outputs, prompts, **_: torch.tensor([float("*" in str(turns)) for turns in outputs])
    settings = {"environment": environment, "critics": {"sees": critic}, "smooth": False, "simulations": 20, "depth": 3}
    counts, lines = searched(tmp_path, policy, [Prompt("2 * 3", {"answer": "6"})], reward, **settings)
    root = next(line for line in lines if len(line["prompt"]) == 1)
    assert root["strength"] == 1.0 and root["rejected"] in ("<calculate>2 + 3</calculate>", "5") and counts["solved"] == 1.0
    called = next(line for line in lines if len(line["prompt"]) == 3)
    assert called["prompt"][2]["role"] == "tool" and called["prompt"][2]["content"] in ("6", "5")
    assert any(line["chosen"] == "6" or line["rejected"] == "5" for line in lines)
    assert mm.data.texts(str(tmp_path / "steps.jsonl")).first(1)[0].strength == 1.0
