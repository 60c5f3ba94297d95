"""Exports of real pipeline classes load again, and what would not is refused."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mmalign.policies.adapters import lora_layers, merged
from mmalign.policies.exports.pipelines import export
from mmalign.policies.settings import Lora, Schedule
from mmalign.policies.twins import pipelines
from mmalign.types import UserError
from tests.helpers.flat import diffusers

TWINS = ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"]


def base_of(name):
    if name == "digits":
        from mmalign.worlds.digits.base import untrained

        pipe = untrained()
        pipelines.shake_parameters(pipe, 0.05)
        return pipe
    pipe = pipelines.twin(name)
    if name == "WanPipeline":
        with torch.random.fork_rng():
            torch.manual_seed(2)
            pipe.register_modules(transformer_2=type(pipe.transformer).from_config(pipe.transformer.config))
        pipe.register_to_config(boundary_ratio=0.5)
        pipelines.shake_parameters(pipe, 0.05)
    return pipe


def policy_of(name, lora=None, **more):
    """A policy whose trained parameters are far from where they began."""
    pipe = base_of(name)
    call = {} if name == "digits" else pipelines.call_arguments(pipe)
    policy = diffusers(pipe, call=call, device="cpu", lora=lora and Lora(**lora), **more, schedule=Schedule(steps=4))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return policy


def outputs(pipe, call, seed=5):
    """What the pipeline makes as a user calls it."""
    kept = {**call, "num_inference_steps": 4, "output_type": "pt"}
    return torch.as_tensor(pipe(prompt="a 7", generator=torch.Generator().manual_seed(seed), return_dict=False, **kept)[0])


@pytest.mark.parametrize("name", TWINS)
def test_lora_comes_back_through_load_lora_weights_and_through_peft(name, tmp_path):
    policy = policy_of(name, lora={"rank": 3, "alpha": 12, "targets": ["to_q", "to_k", "to_v", "to_out.0"]})
    call = pipelines.call_arguments(policy.pipe)
    forms = export(policy, tmp_path / "out", base=lambda: base_of(name))
    assert [form.name for form in forms] == ["diffusers", "peft"]
    live, plain = outputs(policy.pipe, call), outputs(base_of(name), call)
    fresh = base_of(name)
    fresh.load_lora_weights(str(tmp_path / "out"))
    if name == "WanPipeline":
        assert not torch.allclose(outputs(fresh, call), live, atol=1e-5)
        fresh.load_lora_weights(str(tmp_path / "out" / "transformer_2"), load_into_transformer_2=True)
    torch.testing.assert_close(outputs(fresh, call), live, atol=1e-5, rtol=1e-5)
    assert float((live - plain).abs().max()) > 1e-3
    fresh = base_of(name)
    for part in policy.denoisers:
        PeftModel.from_pretrained(fresh.components[part], str(tmp_path / "out" / "peft" / part))
    torch.testing.assert_close(outputs(fresh, call), live, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "out" / "peft" / next(iter(policy.denoisers)) / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)  # alpha 12 is in B
    for part, module in policy.denoisers.items():
        place = tmp_path / "out" / "transformer_2" if part == "transformer_2" else tmp_path / "out"
        key = "transformer" if part == "transformer_2" else part
        bare(place / "pytorch_lora_weights.safetensors", f"{key}.", module)
        bare(tmp_path / "out" / "peft" / part / "adapter_model.safetensors", "base_model.model.", module)


def bare(file, prefix, module):
    """What a loader has that knows tensors alone, and takes B A for the delta."""
    stored, layers = load_file(file), lora_layers(module)
    assert layers and len(stored) == 2 * len(layers)
    for name, layer in layers.items():
        delta = stored[f"{prefix}{name}.lora_B.weight"].flatten(1) @ stored[f"{prefix}{name}.lora_A.weight"].flatten(1)
        torch.testing.assert_close(delta, layer.get_delta_weight("default").detach(), atol=1e-6, rtol=1e-6)


def test_without_a_loader_lora_is_written_for_peft_and_merged(tmp_path):
    policy = policy_of("digits", lora={"rank": 2, "alpha": 6, "targets": "all-linear"})
    before = {name: p.clone() for name, p in policy.pipe.transformer.state_dict().items()}
    forms = export(policy, tmp_path / "out", base=lambda: base_of("digits"), prompt="a 3")
    assert [form.name for form in forms] == ["peft", "full"]
    whole = type(policy.pipe).from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(outputs(whole, {}), outputs(policy.pipe, {}), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, policy.pipe.transformer.state_dict()[name]) for name, value in before.items())  # the live one stays


@pytest.mark.parametrize("name", ["digits", "StableDiffusionPipeline", "FluxPipeline"])
def test_all_weights_come_back_through_from_pretrained(name, tmp_path):
    policy = policy_of(name)
    call = {} if name == "digits" else pipelines.call_arguments(policy.pipe)
    (form,) = export(policy, tmp_path / "out", base=lambda: None, prompt="a 3")
    fresh = type(policy.pipe).from_pretrained(tmp_path / "out")
    assert form.name == "full"
    torch.testing.assert_close(outputs(fresh, call), outputs(policy.pipe, call), atol=1e-5, rtol=1e-5)


def test_the_set_that_stands_in_is_the_one_that_is_written(tmp_path):
    policy = policy_of("digits")
    policy.sets.keep("ema")
    with torch.no_grad():
        for p in policy.parameters().values():
            p.mul_(2)
    with policy.using("ema"):
        export(policy, tmp_path / "out", base=lambda: None, prompt="a 3")
    stored = type(policy.pipe).from_pretrained(tmp_path / "out").transformer.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in policy.sets.sets["ema"].items())


def test_bf16_weights_under_a_float32_adapter(tmp_path):
    def base():
        return base_of("StableDiffusion3Pipeline").to(torch.bfloat16)

    pipe = base()
    policy = diffusers(pipe, call=pipelines.call_arguments(pipe), device="cpu", lora=Lora(rank=2), schedule=Schedule(steps=2))
    with torch.no_grad():
        for p in policy.parameters().values():
            p.add_(0.1)
    assert [form.name for form in export(policy, tmp_path / "out", base=base)] == ["diffusers", "peft"]


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists: takes a folder that is not there yet"):
        export(policy_of("digits"), tmp_path / "out", base=lambda: None, prompt="a 3")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine.txt"]


def permuted(weights):
    key = next(key for key in weights if "lora_B" in key)
    return {**weights, key: weights[key].flip(0)}


def missing(weights):
    return dict(list(weights.items())[:-2])


@pytest.mark.parametrize(("spoil", "match"), [(permuted, "differs from the live model in"), (missing, "has other parameters")])
def test_weights_that_come_back_different_leave_nothing_behind(spoil, match, tmp_path, monkeypatch):
    from importlib import import_module

    files = import_module("mmalign.policies.exports.pipelines")

    own = files.adapter
    monkeypatch.setattr(files, "adapter", lambda module, **how: (spoil(own(module)[0]), own(module)[1]))
    with pytest.raises(UserError, match=match):
        export(policy_of("FluxPipeline", lora={"rank": 2}), tmp_path / "out", base=lambda: base_of("FluxPipeline"))
    assert list(tmp_path.iterdir()) == []


def test_a_lost_alpha_is_found(tmp_path, monkeypatch):
    from importlib import import_module

    files = import_module("mmalign.policies.exports.pipelines")

    own = files.adapter

    def forgets(module, **how):
        weights, config = own(module, **how)
        config.lora_alpha = 2 * config.r
        return weights, config

    monkeypatch.setattr(files, "adapter", forgets)
    with pytest.raises(UserError, match=r"diffusers form of transformer.*differs from the live model in .*lora_B"):
        export(policy_of("FluxPipeline", lora={"rank": 2, "alpha": 8}), tmp_path / "out", base=lambda: base_of("FluxPipeline"))
    assert list(tmp_path.iterdir()) == []


def test_another_base_is_found_by_what_it_answers(tmp_path):
    def other():
        return pipelines.twin("FluxPipeline", seed=1)

    with pytest.raises(UserError, match=r"answers .* apart from the live model, more than 0.0001"):
        export(policy_of("FluxPipeline", lora={"rank": 2}), tmp_path / "out", base=other)
    assert list(tmp_path.iterdir()) == []


def test_merging_is_the_papers_equation():
    policy = policy_of("digits", lora={"rank": 2, "alpha": 6, "targets": ["to_q"]})
    layer = policy.pipe.transformer.blocks[0].to_q
    expected = layer.base_layer.weight + 6 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    state = merged(policy.pipe.transformer)
    torch.testing.assert_close(state.blocks[0].to_q.weight, expected)
    assert state.state_dict().keys() == base_of("digits").transformer.state_dict().keys()
