"""Language and vision-language models under `mmalign inspect`, and as samples of a run."""

from __future__ import annotations

import json

import pytest
import yaml

import mmalign as mm
from mmalign.commands.sample import sample
from mmalign.config import check
from mmalign.policies.inspecting.language import is_language, language_inspection, language_model
from mmalign.policies.pipelines.calls.calling import load as load_pipeline
from mmalign.types import UserError
from tests.helpers import tiny_text

RUN = {
    "use": "online", "policy": {"use": "transformers", "model": {"use": "text"}, "max_completion": 6}, "method": {"use": "grpo"},
    "prompts": {"use": "text_prompts", "count": 4}, "rewards": {"plain": {"use": "text_plain"}}, "steps": 1,
    "batch": {"prompts": 2, "group": 2, "micro_rows": 4}, "evaluation": {"every": 1, "samples": 1, "prompts": ["what is", "the list"]},
    "run": {"name": "words", "checkpoint_every": 1, "trackers": []},
}  # fmt: skip


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "LlavaForConditionalGeneration", "PaliGemmaForConditionalGeneration"])
def test_a_language_model_is_shown_token_by_token(name):
    assert is_language(name)
    made = language_inspection(*language_model(name), node="some/id", device="cpu")
    failed = {row.name: row.value for row in made.rows if row.failed}
    assert not failed, failed
    assert made["as transformers makes it"].startswith("the same ") and "'<|im_end|>'" in made["answer"]
    assert made["gradient"].startswith("reaches ") and "nats a token" in made["replay"]
    assert ("with a picture" in {row.name for row in made.rows}) == name.endswith("ForConditionalGeneration")
    assert made.start.startswith("# A start for ")


def test_its_start_passes_check(tmp_path):
    tiny_text.model("llama").save_pretrained(tmp_path / "m")
    tiny_text.tokenizer(tiny_text.CHATML).save_pretrained(tmp_path / "m")
    assert is_language(str(tmp_path / "m")) and not is_language("StableDiffusionPipeline")
    made = language_inspection(*language_model(str(tmp_path / "m")), node=str(tmp_path / "m"), device="cpu")
    check(yaml.safe_load(made.start))
    made = language_inspection(*language_model(str(tmp_path / "m")), node="m", loaded=True, device="cpu")
    assert made["model"].endswith("21 tensors, all of them in its files")
    assert made["ends with"] == "<eos>, <|im_end|>" and "<pad>" in made["never says"]


def test_a_run_of_a_language_model_is_sampled_in_words(tmp_path, monkeypatch, mmalign):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(RUN))
    assert mmalign("train", "words.yaml")[0] == 0
    code, out, err = mmalign("sample", "words", "--count", "2", "--prompt", "how to")
    assert code == 0, err
    lines = out.splitlines()
    assert (
        lines[0] == "prompt: how to"
        and lines[1].startswith("  seed 0: ")
        and lines[-1] == "samples: runs/words/samples/sampled_000001.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "runs/words/samples/sampled_000001.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["seed"]) for row in rows] == [("how to", 0), ("how to", 1)] and all(row["completion"] for row in rows)
    again = sample(tmp_path / "runs" / "words", prompts=["how to"], count=2, out=tmp_path / "again.jsonl")
    assert [json.loads(line) for line in again.read_text().splitlines()] == rows
    named = {row["prompt"] for row in map(json.loads, sample(tmp_path / "runs" / "words", count=1).read_text().splitlines())}
    assert named == {"what is", "the list"}
    for make in (lambda: mm.policies.transformers("runs/words"), lambda: mm.policies.diffusers("runs/words")):
        with pytest.raises(
            UserError, match=r"runs/words is a run; takes the (model|pipeline) that it trained, with lora: \{from: runs/words\}"
        ):
            make()


def test_a_saved_pipeline_of_a_world_is_loaded_and_other_classes_are_refused(tmp_path):
    from mmalign.worlds.digits.base import untrained

    untrained().save_pretrained(tmp_path / "digits")
    assert type(load_pipeline(str(tmp_path / "digits"))).__name__ == "DigitsPipeline"
    assert mm.policies.diffusers(str(tmp_path / "digits"), device="cpu").denoisers
    index = tmp_path / "digits" / "model_index.json"
    index.write_text(index.read_text().replace("DigitsPipeline", "OtherPipeline"))
    with pytest.raises(UserError, match="is a OtherPipeline, a class that diffusers does not have"):
        load_pipeline(str(tmp_path / "digits"))


@pytest.mark.parametrize(("file", "kind"), [("adapter_config.json", "model"), ("pytorch_lora_weights.safetensors", "pipeline")])
def test_a_folder_with_an_adapter_alone_says_what_to_write(tmp_path, file, kind):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / file).write_bytes(b"{}")
    make = mm.policies.transformers if kind == "model" else mm.policies.diffusers
    with pytest.raises(UserError, match=rf"holds an adapter alone \({file}\); takes its {kind}, with lora: "):
        make(str(tmp_path / "export"))
