"""Reward models of several numbers, from records in files to what a run may be used as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign import config
from mmalign.types import UserError

BEATS = {"file": "list", "list": "string", "string": "file"}  # words of the world, in the part of rock, scissors and paper
ASKED = ["the object", "this class", "in the number"]


def written(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"use": "texts", "path": str(path)}


def circle(asked: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "chosen": better, "rejected": worse} for prompt in asked for better, worse in BEATS.items()]


def run_of(folder: Path, records: list[dict[str, Any]], held: list[dict[str, Any]], *, steps: int = 3, **policy: Any) -> dict[str, Any]:
    options = [f"steps={steps}", "batch.records=6", f"evaluation.every={steps}", "run.name=rm", f"run.folder={folder}"]
    node = config.load("reward_models/text", options)
    node["records"], node["evaluation"]["records"] = written(folder / "train.jsonl", records), written(folder / "held.jsonl", held)
    node["policy"] |= policy
    node["optimizer"] = {"rate": 3.0e-3}
    return node


def test_who_beats_whom_goes_in_a_circle(tmp_path: Path) -> None:
    head = {"use": "linear", "spread": 0.02}
    node = run_of(tmp_path, circle(ASKED[:2]), circle(ASKED[2:]), steps=30, scores=["x", "y"], head=head)
    node["method"] = {"use": "general_preference"}
    summary = config.build(node).summary
    assert summary["held_out/accuracy_after"] == 1.0 and summary["held_out/loss_after"] < 0.4
    with pytest.raises(UserError, match=r"none has a score by itself; takes oracle: \{use: trained_pairs, run: "):
        mm.rewards.trained(str(tmp_path / "rm"))
    moves = [*BEATS, "", "file"]
    wins = mm.rewards.trained_pairs(str(tmp_path / "rm"))(moves, [ASKED[0]] * 5, torch.tensor([0, 0, 0, 0, 1]))
    for place, (better, worse) in enumerate(BEATS.items()):
        assert wins[place, moves.index(worse)] > 0.6 and wins[moves.index(worse), moves.index(better)] < 0.4
    assert wins.diagonal().isnan().all() and wins[3].isnan().all() and wins[4].isnan().all()  # cannot be read; another group
    torch.testing.assert_close(wins[:3, :3] + wins[:3, :3].T, torch.ones(3, 3).double().fill_diagonal_(torch.nan), equal_nan=True)
    with pytest.raises(UserError, match=r"trained_pairs.part: got 'x', takes none: its scores are compared together"):
        mm.rewards.trained_pairs(str(tmp_path / "rm"), part="x")


def test_dimensions_are_scored_by_their_means_and_compared_one_by_one(tmp_path: Path) -> None:
    told = [{**row, "labels": {"brief": float(len(row["chosen"]) < len(row["rejected"])), "wins": 1.0}} for row in circle(ASKED)]
    node = run_of(tmp_path, told[:6], told[6:], scores=["brief", "brief_spread", "wins", "wins_spread"])
    node["method"] = {"use": "bradley_terry_gaussian"}
    policy = config.build(node).policy
    prompts, moves = [ASKED[0]] * 2, ["file", "list"]
    numbers = policy.score(prompts, moves)
    scores = mm.rewards.trained(str(tmp_path / "rm"))(moves, prompts)
    assert list(scores) == ["brief", "wins"]
    torch.testing.assert_close(scores["wins"], numbers[:, 2])
    torch.testing.assert_close(mm.rewards.trained(str(tmp_path / "rm"), part="wins_spread")(moves, prompts), numbers[:, 3])
    spreads = mm.rewards.trained(str(tmp_path / "rm"), spread=True)(moves, prompts)
    assert list(spreads) == ["brief", "brief_spread", "wins", "wins_spread"]
    torch.testing.assert_close(spreads["wins_spread"] ** 2, numbers[:, 3].exp())
    sure = mm.combinations.bayesian(heads={"brief": "brief_spread", "wins": "wins_spread"})(spreads, torch.zeros(2).long(), prompts)
    torch.testing.assert_close(sure, numbers[[0, 1], 2 * (numbers[:, 1] > numbers[:, 3]).long()])
    wins = mm.rewards.trained_pairs(str(tmp_path / "rm"), part="wins")(moves, prompts, torch.zeros(2, dtype=torch.int64))
    chance = mm.methods.bradley_terry_gaussian().wins(numbers[:1], numbers[1:])[0, 1]  # type: ignore[misc]
    torch.testing.assert_close(wins[0, 1], chance)
    with pytest.raises(UserError, match=r"trained_pairs.part: got None, takes brief, wins"):
        mm.rewards.trained_pairs(str(tmp_path / "rm"))


def test_ratings_of_attributes_train_each_by_its_own(tmp_path: Path) -> None:
    rows = [{"prompt": ask, "completion": move, "ratings": {"length": float(len(move)), "r": None}} for ask in ASKED for move in BEATS]
    rows[0]["ratings"]["r"] = rows[-1]["ratings"]["r"] = 100.0
    node = run_of(tmp_path, rows[:6], rows[6:], scores=["length", "r"])
    node["method"] = {"use": "score_regression"}
    summary = config.build(node).summary
    assert summary["held_out/loss_after"] < summary["held_out/loss_before"]
    node = run_of(tmp_path, rows[1:6], rows[6:], scores=["length", "r"])
    node["run"]["name"] = "other"
    with pytest.raises(UserError, match=r"records: nobody labelled r \(policy.scores\) in the first"):
        config.build({**node, "method": {"use": "score_regression"}, "batch": {"records": 5}})
