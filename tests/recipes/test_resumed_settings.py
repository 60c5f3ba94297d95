"""What may be another at a resume: steps, with a line where the rate follows them; else the line says how to start from the weights."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest
import yaml

from mmalign.policies.twins import texts
from mmalign.runs import checkpoint
from mmalign.types import UserError
from tests.helpers import small_run

LINEAR = {"shape": "linear", "steps": 6}


def rates(run):
    return [row["lr"] for row in small_run.rows(run.path) if row["phase"] == "train"]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_decay_of_its_own_length_resumes_to_more_steps_as_the_whole_run(tmp_path, shape):
    decay = {"decay": {"shape": shape, "steps": 6}}
    whole = small_run.online(tmp_path / "whole", steps=6, optimizer=decay, evaluation={"every": 2})
    small_run.online(tmp_path / "cut", steps=4, optimizer=decay, evaluation={"every": 2})
    grown = small_run.online(tmp_path / "cut", steps=6, optimizer=decay, evaluation={"every": 2}, resume=True)
    assert small_run.rows(grown.path) == small_run.rows(whole.path)
    ends = {"linear": 0.05 * (1 - 5 / 6), "cosine": 0.05 * 0.0669873}  # (1 + cos(5 pi / 6)) / 2 = (2 - sqrt 3) / 4
    assert rates(whole)[0] == 0.05 and rates(whole)[5] == pytest.approx(ends[shape])
    same = small_run.online(tmp_path / "same", steps=6, optimizer={"decay": shape}, evaluation={"every": 2})
    assert rates(same) == rates(whole)


def test_steps_that_the_rate_follows_may_grow_and_it_is_said(tmp_path, capsys):
    small_run.online(tmp_path, steps=4, optimizer={"decay": "linear"})
    assert "the rate follows" not in capsys.readouterr().out
    grown = small_run.online(tmp_path, steps=8, optimizer={"decay": "linear"}, resume=True)
    line = "steps: 4 before, 8 now, and the rate follows them: after step 4 it is 0 of 4 steps, 0.025 of 8; a run that is to equal an "
    assert line in (out := capsys.readouterr().out) and "says optimizer.decay: {shape: linear, steps: 8} from its start" in out
    assert rates(grown) == pytest.approx([0.05 * share for share in (1, 3 / 4, 1 / 2, 1 / 4, 1 / 2, 3 / 8, 1 / 4, 1 / 8)])
    small_run.online(tmp_path, steps=8, optimizer={"decay": "linear"}, resume=True)
    assert "the rate follows" not in capsys.readouterr().out
    small_run.online(tmp_path / "constant", steps=2)
    small_run.online(tmp_path / "constant", steps=3, resume=True)
    assert "the rate follows" not in capsys.readouterr().out


def test_another_rate_names_the_warm_start_and_nothing_else_does(tmp_path):
    small_run.online(tmp_path, steps=2)
    with pytest.raises(UserError, match=r"optimizer.rate was 0.05, is 0.1; .* and start from its weights, policy.start: \S+run$"):
        small_run.online(tmp_path, steps=2, optimizer={"rate": 0.1}, resume=True)
    with pytest.raises(UserError, match=r"batch.group was 4, is 8; optimizer.rate was 0.05, is 0.1; undo that, .* \(run.name=...\)$"):
        small_run.online(tmp_path, steps=2, optimizer={"rate": 0.1}, batch={"group": 8}, resume=True)


def test_a_run_of_more_steps_than_its_decay_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"optimizer.decay.steps: got 6 and steps: 7, of which the last have a rate of 0; takes 7"):
        small_run.online(tmp_path, steps=7, optimizer={"decay": LINEAR})


def test_the_line_for_lora_is_one_that_works(tmp_path, monkeypatch, write_module, mmalign):
    """On the command line, with the very words of the refusal."""
    monkeypatch.chdir(tmp_path)
    write_module("rated.py", "def length():\n    return lambda outputs, prompts: [float(len(output) % 5) for output in outputs]\n")
    model, words = texts.twin("LlamaForCausalLM")
    model.save_pretrained("base")
    words.save_pretrained("base")
    config: dict[str, Any] = {
        "use": "online", "policy": {"use": "transformers", "model": "base", "lora": {"rank": 2}, "max_completion": 6, "device": "cpu"},
        "prompts": ["a", "b"], "rewards": {"length": {"use": "rated.length"}}, "method": {"use": "grpo"}, "steps": 2,
        "batch": {"prompts": 2, "group": 4}, "optimizer": {"use": "adamw", "rate": 0.02}, "evaluation": {"every": 9, "samples": 1},
        "run": {"name": "one", "trackers": []},
    }  # fmt: skip
    pathlib.Path("c.yaml").write_text(yaml.safe_dump(config))
    assert mmalign("train", "c.yaml")[0] == 0
    code, _, err = mmalign("train", "c.yaml", "optimizer.rate=0.01", "--resume")
    start = re.search(r"and start from its weights, policy.lora: (\{from: \S+\})", err)
    assert code == 2 and start is not None, err
    config["policy"]["lora"] = yaml.safe_load(start[1])
    pathlib.Path("c.yaml").write_text(yaml.safe_dump(config))
    code, _, err = mmalign("train", "c.yaml", "optimizer.rate=0.01", "run.name=two")
    assert code == 0, err
    before, after = (checkpoint.load(newest(tmp_path / "runs" / name))[0]["trained"] for name in ("one", "two"))
    changes = [float((after[name] - value).abs().max()) for name, value in before.items()]
    assert before.keys() == after.keys() and 0 < max(changes) < 0.05  # two steps of AdamW at 0.01, from where the other run ended


def newest(run):
    return max((run / "checkpoints").iterdir())
