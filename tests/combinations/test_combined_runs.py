"""Combinations in training: from YAML, with state that a resumed run continues to the bit, and a reference that a recipe writes."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign import config
from mmalign.runs import checkpoint
from mmalign.types import UserError
from mmalign.worlds.text import base

NODE = {
    "rewards": {"plain": {"use": "text_plain"}, "short": {"use": "length", "most": 4, "unit": "words"}},
    "combine": {
        "use": "constrained",
        "limits": {"short": -0.5},
        "rate": 1.0,
        "transforms": {"plain": [{"use": "z_score", "over": "running"}, {"use": "clip", "low": -2.0}]},
    },
}


def policy():
    return mm.policies.transformers(*base.untrained(width=16, layers=1), max_completion=6)


def train(folder, combine, *, name, steps=2, **more):
    return mm.online(
        policy(),
        mm.worlds.text_prompts(count=8),
        config.build_part(NODE, "rewards"),
        mm.methods.grpo(beta=0.01),
        combine=combine,
        steps=steps,
        evaluation={"every": 100, "prompts": ["the"], "samples": 2, "columns": 1},
        **more,
        run={"name": name, "folder": str(folder), "trackers": [], "checkpoint_every": 1},
        batch={"prompts": 2, "group": 4},
        optimizer=mm.adamw(rate=1e-2),
    )


def test_a_resumed_run_has_the_state_of_one_that_was_not_interrupted(tmp_path):
    build = lambda: config.build_part(NODE, "combine")  # noqa: E731
    whole = train(tmp_path, build(), name="whole")
    train(tmp_path, build(), name="parts", steps=1)
    parts = train(tmp_path, build(), name="parts", resume=True)
    kept = [checkpoint.load(run.path / "checkpoints" / "step_000002") for run in (whole, parts)]
    assert kept[0][1]["states"] == kept[1][1]["states"]
    state = kept[0][1]["states"]["combine"]
    assert state["own"]["values"]["short"] != 1.0 and state["transforms"]["plain"][0]["count"] == 2 * 8
    for name, value in kept[0][0]["trained"].items():
        assert torch.equal(value, kept[1][0]["trained"][name])
    other = checkpoint.load(train(tmp_path, None, name="sum").path / "checkpoints" / "step_000002")
    assert "combine" not in other[1]["states"]
    assert any(not torch.equal(value, other[0]["trained"][name]) for name, value in kept[0][0]["trained"].items())


def test_the_reward_of_the_log_is_the_combination_and_each_is_logged_apart(tmp_path):
    run = train(tmp_path, mm.combinations.worst(), name="worst", steps=2)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["phase"] == "train")
    assert first["reward"] <= min(first["reward/plain"], first["reward/short"]) + 1e-12
    with pytest.raises(
        UserError, match=r"combine of rewards: weighted_sum\.weights: got 'nothing', takes rewards that are there: plain, short"
    ):
        train(tmp_path, mm.combinations.weighted_sum(weights={"nothing": 1.0}), name="unknown")
    assert not (tmp_path / "unknown").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use": "wrost"}, r"combine\.use: got 'wrost', there is none in combinations\.algebra or combinations\.balancing.*nearest: worst"),
        ({"use": "worst", "transforms": {"plain": {"use": "z_scor"}}}, r"combine\.transforms\.plain\.use: got 'z_scor'.*nearest: z_score"),
        ({"use": "worst", "of": 3}, r"combine\.of: got 3"),
        ({"use": "worst", "missing": "zero"}, r"combine\.missing: got 'zero'"),
    ],
)
def test_mistakes_in_yaml_are_one_line(change, says):
    with pytest.raises(UserError, match=says):
        config.build_part({"combine": change}, "combine")


def test_calibrate_writes_what_calibrated_reads(tmp_path):
    rewards, prompts = config.build_part(NODE, "rewards"), mm.worlds.text_prompts(count=3)
    rewards["odd"] = lambda outputs, prompts: torch.tensor([math.nan if row % 2 else 1.0 for row in range(len(outputs))])
    file = mm.commands.calibrate(policy(), prompts, rewards, out=tmp_path / "deep" / "reference.jsonl", samples=4, prompts_at_once=2)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == list(prompts)
    assert all(len(row["rewards"]["plain"]) == 4 and row["rewards"]["odd"] == [1.0, None, 1.0, None] for row in rows)
    again = mm.commands.calibrate(policy(), prompts, rewards, out=tmp_path / "again.jsonl", samples=4, prompts_at_once=2)
    assert again.read_text() == file.read_text()
    step = mm.combinations.calibrated(reference=str(file), reward="plain")
    by = mm.combinations.weighted_sum(weights={"plain": 1.0}, transforms={"plain": step})
    scores = torch.tensor([max(row["rewards"]["plain"]) + 1 for row in rows], dtype=torch.float64)
    assert by({"plain": scores}, torch.arange(3), prompts).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UserError, match="is there already; takes a new file"):
        mm.commands.calibrate(policy(), prompts, rewards, out=file)


def test_a_held_out_front_is_told_of_evaluations_also_where_a_run_goes_on(tmp_path):
    sides = {"weights": {"plain": 1.0, "short": 1.0}, "worst": {"plain": -9.0, "short": -9.0}, "held_out": True}
    build = lambda: mm.combinations.hypervolume_weights(**sides)  # noqa: E731
    whole = train(tmp_path, build(), name="whole", steps=3)
    train(tmp_path, build(), name="parts", steps=2)
    parts = train(tmp_path, build(), name="parts", steps=3, resume=True)
    kept = [checkpoint.load(run.path / "checkpoints" / "step_000003")[1] for run in (whole, parts)]
    assert kept[0]["states"]["combine"]["own"]["heard"] == 1 and kept[0]["states"]["combine"]["own"]["gain"] == 1.0
    first = kept[0]["evaluations"][0]
    assert kept[0]["states"]["combine"]["own"]["points"] == [[first["plain"], first["short"]]]
    assert kept[1]["states"]["combine"]["own"]["heard"] == 2  # the first part's last step was evaluated, and told
