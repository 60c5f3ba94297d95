"""Prompts with columns: from a file to rewards, judges, oracles and metrics; and a file that changes is another run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.training.rollouts.feedback import beside, refuse_columns
from mmalign.types import Prompt, UserError, columns_of, contents
from tests.helpers.small_run import online


def written(folder: Path, rows: list[dict[str, Any]]) -> str:
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "prompts.jsonl")


def test_a_file_keeps_its_columns(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "2 + 2?"}]
    path = written(tmp_path, [{"q": "1 + 1?", "answer": 2, "shots": ["a.png"]}, {"q": talk, "answer": [4, "four"]}])
    prompts = mm.data.prompts(path, key="q", files=["shots"])
    assert contents(prompts) == ["1 + 1?", talk]
    assert columns_of(prompts) == {"answer": [2, [4, "four"]], "shots": [[str(tmp_path / "a.png")], None]}
    assert columns_of(["plain", Prompt("p", {"x": 1})]) == {"x": [None, 1]} and contents(["plain"]) == ["plain"]
    assert beside(prompts, rows=4)["answer"] == [2, 2, [4, "four"], [4, "four"]]
    with pytest.raises(UserError, match=r"line 1: prompts: got a column 'outputs', which is what a reward's own argument is called"):
        mm.data.prompts(written(tmp_path, [{"prompt": "p", "outputs": 1}]))


def asks(seen: list[Any]) -> Any:
    """A plain reward that reads the column ``wanted``."""

    def reward(outputs: torch.Tensor, prompts: list[str], wanted: list[float]) -> torch.Tensor:
        assert all(isinstance(prompt, str) for prompt in prompts)
        seen.append(list(zip(prompts, wanted, strict=True)))
        return -(outputs[:, 0] - torch.tensor(wanted)).abs()

    return reward


PROMPTS = [Prompt(name, {"wanted": float(number)}) for number, name in enumerate("abc")]


def test_rewards_judges_metrics_and_oracles_read_them(tmp_path: Path) -> None:
    seen: list[Any] = []

    def metric(outputs: Any, prompts: Any, wanted: Any) -> dict[str, float]:
        return {"metric": float(sum(wanted))}

    evaluation = {"every": 3, "samples": 2, "judges": {"judge": asks(seen)}, "metrics": {"m": metric}}
    run = online(tmp_path, prompts=PROMPTS, rewards={"near": asks(seen)}, evaluation=evaluation)
    assert all(wanted == "abc".index(prompt) for call in seen for prompt, wanted in call)
    assert run.summary["metric_after"] == 2 * (0 + 1 + 2) and run.summary["status"] == "finished"


def test_a_column_that_is_not_there_is_one_line_before_anything_is_sampled(tmp_path: Path) -> None:
    other = [Prompt(name, {"want": 1.0, "id": 3}) for name in "abc"]
    line = r"^reward near: reads the column 'wanted' of the prompts; they have .*id, want.*nearest: want$"
    with pytest.raises(UserError, match=line):
        online(tmp_path, prompts=other, rewards={"near": asks([])})
    with pytest.raises(UserError, match="judge late: reads the column 'wanted' of the prompts"):
        online(tmp_path, prompts=["a"], evaluation={"judges": {"late": asks([])}})
    with pytest.raises(UserError, match="metric m: reads the column 'wanted' of the prompts"):
        online(tmp_path, prompts=["a"], evaluation={"metrics": {"m": asks([])}})
    refuse_columns({"ours": mm.rewards.exact_match()}, ["answer"], kind="reward")
    with pytest.raises(UserError, match="reward ours: reads the column 'answer' of the prompts; they have none"):
        refuse_columns({"ours": mm.rewards.exact_match()}, [], kind="reward")
    assert not (tmp_path / "run").exists()


def test_other_prompts_are_refused_at_resume(tmp_path: Path) -> None:
    changed = [*PROMPTS[:2], Prompt("c", {"wanted": 7.0})]
    reward = {"near": asks([])}
    online(tmp_path, prompts=PROMPTS, rewards=reward, steps=3)
    with pytest.raises(UserError, match="prompts"):
        online(tmp_path, prompts=changed, rewards=reward, resume=True)
    assert online(tmp_path, prompts=PROMPTS, rewards=reward, resume=True).summary["steps"] == 6


def test_a_changed_file_is_refused_at_resume(tmp_path: Path) -> None:
    rows = [{"prompt": name, "wanted": number} for number, name in enumerate("abc")]
    read = lambda: mm.prompts(written(tmp_path, rows))  # noqa: E731 (the call, and so the config, stays the same)
    online(tmp_path, prompts=read(), rewards={"near": asks([])}, steps=3)
    rows[2]["wanted"] = 7
    with pytest.raises(UserError, match="prompts: are others than those that this run began with"):
        online(tmp_path, prompts=read(), rewards={"near": asks([])}, resume=True)
