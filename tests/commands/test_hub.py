"""Exports put on the hub, against a stand-in of its API, and what the head of a card says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load

from mmalign.commands._hub import may_push, push
from mmalign.commands._metadata import library, metadata, pipeline_tag
from mmalign.policies.twins import pipelines, texts, visions
from mmalign.types import UserError
from tests.helpers import hub, tiny_text


@pytest.fixture
def run(tmp_path: Path, mmalign, monkeypatch) -> Path:
    """A run of a tiny language model with a LoRA."""
    monkeypatch.chdir(tmp_path)
    tiny_text.model().save_pretrained("base")
    tiny_text.tokenizer(tiny_text.CHATML).save_pretrained("base")
    Path("pairs.jsonl").write_text('{"prompt": "hi", "chosen": "a", "rejected": "b"}\n')
    config = {
        "use": "offline", "policy": {"use": "transformers", "model": "base", "max_completion": 4, "lora": {"rank": 2}},
        "records": {"use": "texts", "path": "pairs.jsonl"}, "method": {"use": "dpo"}, "steps": 1, "batch": {"records": 1},
        "evaluation": {"prompts": ["hi"], "samples": 1, "judges": {"brief": {"use": "length", "most": 9}}},
        "run": {"name": "r", "trackers": []},
    }  # fmt: skip
    Path("c.yaml").write_text(json.dumps(config))
    assert mmalign("train", "c.yaml").code == 0
    return tmp_path / "runs" / "r"


def test_an_export_is_one_commit_with_a_card_that_the_hub_reads(run, mmalign, monkeypatch):
    with hub.running(monkeypatch) as there:
        done = mmalign("export", "r", "--push", "lab/tiny", "--license", "apache-2.0")
    assert done.code == 0, done.err
    assert f"on the hub: {there.address}/lab/tiny\n" in done.out and there.private == {"lab/tiny": True} and len(there.messages) == 1
    files, local = there.repos["lab/tiny"], run / "export"
    assert {name: len(content) for name, content in files.items() if not name.startswith(".")} == {
        str(path.relative_to(local)): path.stat().st_size for path in local.rglob("*") if path.is_file()
    }
    assert any("lora_B" in name for name in load(files["adapter_model.safetensors"]))
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert (head["license"], head["library_name"], head["pipeline_tag"]) == ("apache-2.0", "peft", "text-generation")
    assert head["tags"] == ["alignment", "mmalign", "dpo", "lora"] and "base_model" not in head  # a folder of this machine's is no id
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["type"] == "brief"


@pytest.mark.parametrize(
    ("token", "repo", "line"),
    [
        ("hf_reader", "me/x", "--push: the token of me may only read; takes a token of yours that may write"),
        ("hf_gone", "me/x", "--push me/x: the hub answered 401; takes a token of yours that may write"),
        ("hf_owner", "others/x", "--push: me is no member of others; takes one of me, lab"),
        ("hf_owner", "x", "--push: got 'x', takes ORGANISATION/NAME"),
        ("hf_owner", "me/a b", "--push: got 'me/a b', takes ORGANISATION/NAME"),
        (None, "me/x", "--push: found no token; takes a token of yours"),
    ],
)
def test_who_may_not_push_is_told_before_anything_is_done(token, repo, line, monkeypatch):
    with hub.running(monkeypatch, token) as there, pytest.raises(UserError) as error:
        may_push(repo)
    assert str(error.value).startswith(line) and "\n" not in str(error.value) and there.repos == {}


def test_a_repository_that_is_refused_and_a_hub_that_is_not_there_are_lines(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    with hub.running(monkeypatch) as there:
        there.taken.add("lab/x")
        with pytest.raises(UserError, match="--push lab/x: the hub answered 403; takes a token of yours that may write"):
            push(tmp_path, "lab/x", private=True, message="m")
        assert push(tmp_path, "me/y", private=False, message="m") == f"{there.address}/me/y" and there.private["me/y"] is False
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        may_push("me/x")


def test_the_head_says_what_a_model_is_and_nothing_of_what_is_not_known():
    model, _ = texts.twin("LlamaForCausalLM")
    head = yaml.safe_load(
        metadata(name="r", base="org/base", model=model, forms=["full"], method="grpo", judges={"a": float("nan")}, license=None)
    )
    assert head == {
        "base_model": "org/base", "base_model_relation": "finetune", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["alignment", "mmalign", "grpo"],
    }  # fmt: skip
    sees, _ = visions.twin("Qwen2VLForConditionalGeneration")
    assert (pipeline_tag(sees), library(sees, lora=True)) == ("image-text-to-text", "peft")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("StableDiffusionPipeline", "text-to-image"), ("WanPipeline", "text-to-video"), ("WanImageToVideoPipeline", "image-to-video"),
        ("FluxKontextPipeline", "image-to-image"), ("StableAudioPipeline", "text-to-audio"),
    ],
)  # fmt: skip
def test_the_task_of_a_pipeline_is_told_by_its_call(name, task):
    kind = type("Pipe", (), {"__call__": pipelines.pipeline_class(name).__call__, "components": {}})
    assert pipeline_tag(kind()) == task and library(SimpleNamespace(components={}), lora=True) == "diffusers"
