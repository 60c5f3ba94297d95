"""A reward model that is trained anew between rounds of following its gradient, on pairs of what the policy draws now."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import mmalign as mm
from mmalign.config import build, load
from mmalign.runs.rounds import read_entries
from mmalign.training.seeds import stream
from mmalign.types import Rollout, UserError

SMALL = (
    "rounds=1", "stages.sample.group=6", "stages.sample.most=3", "stages.exam.group=6", "stages.exam.most=2", "stages.reward.steps=2",
    "stages.reward.batch={records: 8}", "stages.reward.evaluation.every=2", "stages.reward.evaluation.held_out=4", "stages.align.steps=1",
    "stages.align.batch={prompts: 2, group: 2}", "stages.align.evaluation.samples=1", "stages.align.evaluation.every=1",
    "stages.sample.policy.schedule.steps=2", "stages.exam.policy.schedule.steps=2", "stages.align.policy.schedule.steps=2",
    "stages.align.method.last_steps=1", "stages.sample.prompts={use: digit_prompts, count: 3}",
    "stages.exam.prompts={use: digit_prompts, count: 3}", "stages.align.evaluation.prompts={use: digit_prompts, count: 2}",
)  # fmt: skip


def test_rounds_of_pairs_a_reward_model_and_its_gradient(tmp_path: Path) -> None:
    ended = build({**load("digits/reward_rounds", SMALL), "run": {"folder": str(tmp_path), "name": "run"}})
    assert ended.summary["status"] == "finished"
    assert [entry.stage for entry in read_entries(ended.path)] == ["sample", "exam", "reward", "align"]
    node = yaml.safe_load((ended.path / "round_001" / "align" / "config.yaml").read_text())
    assert Path(node["rewards"]["learned"]["run"]) == ended.path / "round_001" / "reward" and node["policy"].get("start") is None


def test_pairs_of_images_are_the_policys_own_in_the_judges_order(tmp_path: Path) -> None:
    policy = mm.policies.diffusers(mm.worlds.digits(), schedule=mm.Schedule(steps=2), device="cpu")
    gold, prompts = mm.worlds.digits_gold(), mm.worlds.digit_prompts(count=2)
    out = tmp_path / "made" / "pairs.jsonl"
    counts = mm.commands.make_pairs(policy, prompts, {"gold": gold}, out=str(out), group=6, most=2, prompts_at_once=1)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts["pairs"] == len(lines) == 4 and counts["prompts"] == 2
    read = {record.id: record for record in mm.data.pairs(str(out)).first(9)}
    for number, prompt in enumerate(prompts):
        drawn = policy.sample([prompt], 6, stream(0, number, 0, "pairs")).outputs
        order = gold(drawn, [prompt] * 6).argsort()
        for place in (0, 1):
            record, line = read[f"{number}-{place}"], next(line for line in lines if line["id"] == f"{number}-{place}")
            better, worse = (record.first, record.second) if record.strength > 0.5 else (record.second, record.first)
            for side, picture, row in (("chosen", better, order[-1 - place]), ("rejected", worse, order[place])):
                assert line[side] == f"pairs/{number}-{place}_{side}.png" and record.prompt == prompt
                torch.testing.assert_close(picture[:1], drawn[row].clamp(0, 1), rtol=0, atol=0.51 / 255)
            assert line["score_chosen"] > line["score_rejected"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_records_of_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name in "ab":
        line = {"prompt": f"{name} ", "chosen": "yes", "rejected": "no", "id": name}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    paths = [str(tmp_path / f"{name}.jsonl") for name in "ab"]
    assert sorted(record.id for record in mm.data.texts(paths).first(2)) == ["a", "b"]
    with pytest.raises(UserError, match=r"^records\.path: got an empty list"):
        mm.data.texts([])


def test_pairs_of_videos_are_films(tmp_path: Path) -> None:
    class Draws:
        """Makes of each prompt films that grow brighter."""

        def sample(self, prompts, group_size, rng):
            shade = torch.arange(1, group_size + 1).repeat(len(prompts)) / 8
            films = shade.view(-1, 1, 1, 1, 1).expand(-1, 3, 3, 16, 16)
            return Rollout(
                prompts=[prompt for prompt in prompts for _ in range(group_size)], outputs=films,
                log_probs=torch.zeros(len(shade), 1).double(), mask=torch.ones(len(shade), 1).bool(),
                group=torch.arange(len(prompts)).repeat_interleave(group_size), held=None,
            )  # fmt: skip

    bright = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
    mm.commands.make_pairs(Draws(), ["a", "b"], {"bright": bright}, out=str(tmp_path / "films.jsonl"), group=4)
    first = mm.data.pairs(str(tmp_path / "films.jsonl"), frames=3).first(2)[0]
    better, worse = (first.first, first.second) if first.strength > 0.5 else (first.second, first.first)
    assert better.shape[-2:] == (16, 16) and better.ndim == 4
    assert abs(float(better.mean()) - 0.5) < 0.03 and abs(float(worse.mean()) - 0.125) < 0.03
