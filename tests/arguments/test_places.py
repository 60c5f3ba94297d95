"""Places that a config names, as a run keeps them: whole, whoever started it and wherever it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.arguments.places import absolute
from mmalign.config import load
from tests.helpers import tiny_text


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ({"policy": {"use": "transformers", "model": "here", "tokenizer": "here"}}, ("policy", "model")),
        ({"policy": {"use": "forward", "of": {"use": "diffusers", "pipeline": "here"}}}, ("policy", "of", "pipeline")),
        ({"policy": {"lora": {"from": "here"}}}, ("policy", "lora", "from")),
        ({"policy": {"start": "here"}}, ("policy", "start")),
        ({"references": {"ref": {"from": "here"}}}, ("references", "ref", "from")),
        ({"records": {"use": "pairs", "path": "here"}}, ("records", "path")),
    ],
)
def test_what_is_there_gets_its_whole_name(node: dict[str, Any], place: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    inner: Any = absolute(node, tmp_path)
    for key in place:
        inner = inner[key]
    assert inner == str((tmp_path / "here").resolve())
    assert absolute(node, tmp_path / "here") == node  # where there is none it may be the name of a run, or a hub id


def test_words_that_a_folder_is_called_by_chance_stay(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    node = {
        "policy": {"use": "transformers", "model": {"use": "text", "model": "small"}},
        "method": {"use": "small"},
        "run": {"name": "small"},
    }
    assert absolute(node, tmp_path) == node
    assert absolute({"path": "a" * 5000, "prompts": "a\0b", "start": ""}, tmp_path) == {"path": "a" * 5000, "prompts": "a\0b", "start": ""}


@pytest.mark.parametrize("started", ["config", "python"])
def test_a_run_is_sampled_from_another_folder(started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmalign: Any) -> None:
    tiny_text.model().save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    run: dict[str, Any] = {"steps": 1, "batch": {"prompts": 2, "group": 4}, "run": {"name": "r", "folder": "runs", "trackers": []}}
    if started == "python":
        policy = mm.policies.transformers("base", max_completion=6)
        mm.online(policy, ["ab", "cd"], {"short": mm.rewards.length(most=9, unit="characters", soft=9)}, mm.methods.grpo(beta=0.0), **run)
    else:
        rewards = {"short": {"use": "length", "most": 9, "unit": "characters", "soft": 9}}
        policy = {"use": "transformers", "model": "base", "max_completion": 6}
        node = {
            "use": "online",
            "policy": policy,
            "prompts": ["ab", "cd"],
            "rewards": rewards,
            "method": {"use": "grpo", "beta": 0.0},
            **run,
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(node))
        assert load(str(tmp_path / "c.yaml"))["policy"]["model"] == str((tmp_path / "base").resolve())
        assert mmalign("train", "c.yaml").code in (0, 1)  # 1 where this one step had no signal
    (tmp_path / "inner").mkdir()
    os.chdir(tmp_path / "inner")
    done = mmalign("sample", "../runs/r", "--prompt", "ab", "--count", "1")
    assert done.code == 0 and "seed 0: " in done.out, done.err
