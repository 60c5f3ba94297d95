"""Checkpoints that are not whole: refused in one line that counts what is there, for models, pipelines, rewards and references."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmalign.policies.language.models.loading import load
from mmalign.policies.pipelines.calls.calling import load as load_pipeline
from mmalign.policies.twins import pipelines, visions
from mmalign.rewards._models.clip import load_clip
from mmalign.runs import weights
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

UP = "model.layers.0.mlp.up_proj.weight"


def saved(path, name="llama", **more):
    tiny_text.model(name).save_pretrained(path, **more)
    tiny_text.tokenizer(tiny_text.CHATML).save_pretrained(path)
    return path


def changed(file, change):
    held = load_file(file)
    change(held)
    save_file(held, file, metadata={"format": "pt"})


def line(act):
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2", "bloom", "opt", "mamba", "phi3", "mixtral"])
def test_whole_checkpoints_load_with_their_tied_weights_and_buffers(tmp_path, name):
    model, _ = load(str(saved(tmp_path / "m", name)))
    assert type(model) is type(tiny_text.model(name))


def test_a_missing_a_strange_and_a_misshaped_tensor_are_named_and_counted(tmp_path):
    file = saved(tmp_path / "m") / "model.safetensors"
    changed(file, lambda held: held.pop(UP))
    message = line(lambda: load(str(file.parent)))
    assert (
        message
        == f"policy.model: {file.parent}: 20 of 21 tensors of LlamaForCausalLM are there; missing: {UP}; takes a whole checkpoint of it"
    )
    changed(file, lambda held: held.update({UP: torch.ones(3, 3), "model.layers.7.extra": torch.ones(2)}))
    message = line(lambda: load(str(file.parent)))
    assert (
        f"20 of 21 tensors of LlamaForCausalLM are there; of another shape: {UP} [3, 3] for [24, 16]; not known: model.layers.7.extra"
        in message
    )
    changed(file, lambda held: [held.pop(name) for name in list(held)[:8]])
    assert "and 6 more" in line(lambda: load(str(file.parent))) or "more; " in line(lambda: load(str(file.parent)))


def test_buffers_that_older_files_hold_are_no_difference(tmp_path):
    file = saved(tmp_path / "m") / "model.safetensors"
    changed(
        file, lambda held: held.update({"model.layers.0.self_attn.masked_bias": torch.ones(4), "model.rotary_emb.inv_freq": torch.ones(4)})
    )
    load(str(file.parent))


def test_shards_are_compared_too(tmp_path):
    folder = saved(tmp_path / "m", max_shard_size="10KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    changed(shards[1], lambda held: held.pop(next(iter(held))))
    assert "20 of 21 tensors" in line(lambda: load(str(folder)))
    shards[1].unlink()
    assert line(lambda: load(str(folder))).startswith(f"policy.model: got '{folder}'")


@pytest.mark.parametrize("size", [0, 5, 20, 3000])
def test_a_truncated_file_is_one_line(tmp_path, size):
    file = saved(tmp_path / "m") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert line(lambda: load(str(file.parent))).startswith(f"policy.model: got '{file.parent}', takes a causal language model")


@pytest.mark.parametrize("name", ["/no/such", "./no/such", "~/no/such", "a b", "x/y/z", ""])
def test_a_place_that_does_not_exist_is_said_to(name):
    for act in (load, load_pipeline, lambda name: load_clip("clip_score", name)):
        message = line(lambda act=act: act(name))
        assert f": got {name!r}, takes a folder or a hub id" in message and message.endswith("no such folder") and "Repo id" not in message


def test_a_vision_language_model_is_compared(tmp_path):
    model, processor = visions.twin("LlavaForConditionalGeneration")
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    load(str(tmp_path / "m"))
    file = tmp_path / "m" / "model.safetensors"
    name = next(name for name in load_file(file) if "vision" in name)
    changed(file, lambda held: held.pop(name))
    assert "tensors of LlavaForConditionalGeneration are there; missing: " in line(lambda: load(str(tmp_path / "m")))


# Pipelines


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    place = tmp_path_factory.mktemp("pipe") / "sd3"
    pipelines.twin(pipelines.pipeline_class("StableDiffusionPipeline")).save_pretrained(place)
    load_pipeline(str(place))
    return place


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_a_pipeline_is_compared(pipeline, part):
    file = next((pipeline / part).glob("*.safetensors"))
    before = file.read_bytes()
    name = sorted(load_file(file))[3]
    try:
        changed(file, lambda held: held.pop(name))
        message = line(lambda: load_pipeline(str(pipeline)))
        assert f"policy.pipeline: {part}: {pipeline / part}: " in message and f"missing: {name}" in message
        file.write_bytes(before)
        changed(file, lambda held: held.update(strange=torch.ones(2)))
        assert "not known: strange" in line(lambda: load_pipeline(str(pipeline)))
        file.write_bytes(before[: len(before) // 2])
        assert line(lambda: load_pipeline(str(pipeline))).startswith("policy.pipeline: ")
    finally:
        file.write_bytes(before)


# Rewards and references


def test_a_reward_with_a_missing_tensor_is_refused_and_left_heads_are_not(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertModel

    from mmalign.rewards._models.weights import pretrained

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(tmp_path / "b")
    take = lambda: pretrained("relevance.weights", BertModel, str(tmp_path / "b"), "an encoder", optional=("pooler.",))  # noqa: E731
    take()
    file = tmp_path / "b" / "model.safetensors"
    changed(file, lambda held: held.pop("bert.encoder.layer.0.output.dense.weight"))
    assert "missing: encoder.layer.0.output.dense.weight" in line(take)


def test_a_reference_with_other_tensors_is_refused(tmp_path):
    policy = transformers(tiny_text.model("llama"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=8, device="cpu")
    file = saved(tmp_path / "m") / "model.safetensors"
    adopt = lambda: policy.sets.adopt("ref", weights.read(file.parent, "references.ref"))  # noqa: E731
    adopt()
    changed(file, lambda held: held.update({"model.layers.2.mlp.up_proj.weight": held[UP].clone()}))
    assert "got 1 tensors that this model does not have, such as model.layers.2" in line(adopt)
    changed(file, lambda held: [held.pop("model.layers.2.mlp.up_proj.weight"), held.pop(UP)])
    assert f"got weights with no {UP}" in line(adopt)
    file.write_bytes(file.read_bytes()[:500])
    assert line(adopt).startswith(f"references.ref: {file} cannot be read as safetensors")


def test_an_adapter_with_a_missing_tensor_is_refused(tmp_path):
    from mmalign.policies.adapters import write_adapter

    policy = transformers(tiny_text.model("llama"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=8, device="cpu", lora={"rank": 2})
    (tmp_path / "a").mkdir()
    write_adapter(policy.model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["r"] == 2
    adopt = lambda: policy.sets.adopt("ref", weights.read(tmp_path / "a", "references.ref"))  # noqa: E731
    adopt()
    file = tmp_path / "a" / "adapter_model.safetensors"
    changed(file, lambda held: held.pop(next(name for name in held if "lora_B" in name)))
    assert "references.ref: got weights with no " in line(adopt)
