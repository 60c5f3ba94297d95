"""Places that a config names, as a run keeps them: whole, whoever started it and wherever it is used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.arguments.places import absolute, by_name, found, is_same, resource
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


def test_what_comes_with_mmalign_is_kept_by_its_name_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = str(resource("assets/text/small").resolve())
    policy = {"use": "transformers", "model": whole}
    made = {"policy": policy, "prompts": [whole, "assets/text/small"], "references": {"a": {"soup": [whole]}}}
    kept = by_name(made)
    assert kept["policy"]["model"] == "assets/text/small" and kept["references"]["a"]["soup"] == ["assets/text/small"]
    assert kept["prompts"] == made["prompts"]  # words for a model, whatever they are called
    assert found(kept) == made
    for name in ("assets/none", "assets/../README.md", "assets", f"{whole}x", "mine/assets/text/small"):
        assert by_name({"path": name}) == found({"path": name}) == {"path": name}
    (tmp_path / "assets" / "text" / "small").mkdir(parents=True)
    assert found(kept) == kept  # a folder of the user's own by that name comes first


def test_an_earlier_place_is_the_same_where_it_has_gone_and_no_other_one(tmp_path: Path) -> None:
    name = "assets/text/small"
    other = tmp_path / name
    assert is_same(str(other), name) and is_same(str(resource(name)), name)
    other.mkdir(parents=True)
    assert not is_same(str(other), name)  # it is there, and is not ours
    others = (("/gone/assets/text/smaller", name), ("/gone/assets/none", "assets/none"), (name, name), ("/x/mine", "mine"), (1, name))
    for was, now in others:
        assert not is_same(was, now)


@pytest.mark.parametrize("started", ["config", "python"])
def test_a_run_of_a_model_of_ours_outlives_the_copy_of_mmalign_that_made_it(
    started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmalign: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    run: dict[str, Any] = {"steps": 1, "batch": {"prompts": 2, "group": 4}, "run": {"name": "r", "trackers": []}}
    node = {
        "use": "online",
        "policy": {"use": "transformers", "model": "assets/text/small", "max_completion": 6},
        "prompts": ["the file", "the name"],
        "rewards": {"short": {"use": "length", "most": 9, "unit": "characters", "soft": 9}},
        "method": {"use": "grpo", "beta": 0.0},
        **run,
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(node))
    if started == "python":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = resource("assets/text/small")
        model, words = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        rewards = {"short": mm.rewards.length(most=9, unit="characters", soft=9)}
        policy = mm.policies.transformers(model, tokenizer=words, max_completion=6)
        mm.online(policy, ["the file", "the name"], rewards, mm.methods.grpo(beta=0.0), **run)
    else:
        assert mmalign("train", "c.yaml").code in (0, 1)  # 1 where this one step had no signal
    file = tmp_path / "runs" / "r" / "config.yaml"
    kept = yaml.safe_load(file.read_text())
    assert kept["policy"]["model"] == "assets/text/small" and str(resource("assets")) not in file.read_text()
    done = mmalign("sample", "runs/r", "--prompt", "the file", "--count", "1")
    assert done.code == 0 and "seed 0: " in done.out, done.err
    if started == "config":  # as versions before kept it, in a checkout that has gone
        file.write_text(file.read_text().replace("model: assets", f"model: {tmp_path}/gone/assets"))
        more = mmalign("train", "c.yaml", "--resume", "steps=2")
        assert more.code in (0, 1) and "goes on although policy.model was" in more.out + more.err, more.err
