"""What ``mmalign inspect`` says of pipelines that are known, and of what is none."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from mmalign import cli
from mmalign.config import check
from mmalign.policies.inspecting.inspection import inspection, lora_targets
from mmalign.policies.inspecting.loading import load_pipeline
from mmalign.policies.twins import pipelines
from mmalign.types import UserError


def looked_at(name, **call):
    inspected = load_pipeline(name)
    return inspection(inspected.pipe, call=call, trial_arguments=inspected.trial_arguments, node=inspected.node, device="cpu")


def digits(**call):
    from mmalign.worlds.digits.base import untrained

    pipe = untrained()
    pipelines.shake_parameters(pipe, 0.05)
    return inspection(pipe, call=call, node={"use": "digits"}, device="cpu")


def test_a_pipeline_of_classes_is_asked_for_classes():
    inspected = looked_at("DiTPipeline")
    assert [row.name for row in inspected.rows if row.failed] == ["vector timesteps"]  # it makes its first latent inside of its call
    assert yaml.safe_load(inspected.start)["prompts"] == ["3", "2"]


def test_stable_diffusion():
    inspected = looked_at("StableDiffusionPipeline")
    assert not any(row.failed for row in inspected.rows)
    unet = pipelines.twin("StableDiffusionPipeline").unet
    assert inspected["denoisers"] == f"unet (UNet2DConditionModel, {sum(p.numel() for p in unet.parameters()) / 1e3:.3g} k)"
    assert "vae" in inspected["frozen"] and inspected["LoRA targets"].startswith("to_q 8, to_k 8, to_v 8, to_out.0 8; others: ")
    assert (inspected["prediction"], inspected["path"]) == ("epsilon", "variance preserving (signal² + noise² = 1)")
    assert inspected["guidance"] == "guidance_scale: one doubled batch" and inspected["default steps"] == "50"
    assert inspected["latent"] == "4 x 16 x 16, event_size 1024" and inspected["clip 1e-4 per scalar"].startswith("0.102 nats")
    assert inspected["replay"] == "exact (difference 0.0)" and inspected["vector timesteps"].startswith("work")
    assert inspected["gradient"] == "reaches 32 of 32 LoRA layers"
    assert "for one sample" in inspected["seconds per step"] and "kept for the backward pass" in inspected["memory per sample"]


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("FluxPipeline", "guidance_scale: embedded (guidance); true_cfg_scale: two calls a step"),
        ("WanPipeline", "guidance_scale: two calls a step"),
        ("StableDiffusion3Pipeline", "guidance_scale: one doubled batch"),
        ("LTXPipeline", "guidance_scale: one doubled batch"),
        ("DDPMPipeline", "none: the call takes no guidance"),
    ],
)
def test_guidance_is_found_by_counting(name, guidance):
    assert looked_at(name)["guidance"] == guidance


def test_the_other_kinds_of_path_and_a_scheduler_that_is_replaced():
    import diffusers

    heun = inspection(
        pipelines.twin("StableDiffusionPipeline", scheduler=diffusers.HeunDiscreteScheduler()),
        node="x",
        device="cpu",
        trial_arguments=pipelines.call_arguments(pipelines.twin("StableDiffusionPipeline")),
    )
    assert heun["scheduler"] == "HeunDiscreteScheduler, replaced by EulerDiscreteScheduler while training"
    assert heun["path"].startswith("variance exploding (signal 1, noise up to ") and "{use: ddim" in heun.start
    assert digits()["path"] == "flow (signal + noise = 1)"


def test_digits():
    inspected = digits(guidance_scale=2.0)
    assert not any(row.failed for row in inspected.rows)
    assert inspected["guidance"] == "guidance_scale: one doubled batch" and inspected["latent"] == "1 x 8 x 8, event_size 64"
    assert inspected["LoRA targets"].startswith("to_q 4, to_k 4, to_v 4, to_out 4") and "guidance: 2.0, " in inspected.start


@pytest.mark.parametrize(
    "found", [lambda: looked_at("FluxPipeline", max_sequence_length=32), lambda: looked_at("WanImageToVideoPipeline"), digits]
)
def test_the_yaml_to_start_from_has_no_mistakes(found):
    node = yaml.safe_load(found().start)
    assert check(node) == []
    assert node["policy"]["use"] == "diffusers" and node["policy"]["lora"]["rank"] == 32


def test_only_what_the_user_said_comes_into_the_yaml_and_what_it_cannot_say_is_named():
    start = looked_at("WanImageToVideoPipeline", num_frames=5).start
    assert yaml.safe_load(start)["policy"]["call"] == {"num_frames": 5} and "# It needs image, which YAML cannot say" in start


def test_what_fails_is_a_row_with_its_reason(monkeypatch):
    pipe = pipelines.twin("StableDiffusionPipeline")

    def refuses(*args, **kwargs):
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(pipe.unet, "forward", refuses)
    inspected = inspection(pipe, trial_arguments=pipelines.call_arguments(pipe), device="cpu")
    failed = {row.name: row.value for row in inspected.rows if row.failed}
    assert failed == dict.fromkeys(("path", "guidance", "latent"), "RuntimeError: no such thing") and inspected["prediction"] == "epsilon"


def test_replay_that_differs_and_layers_that_nothing_reaches_are_said(monkeypatch):
    pipe = pipelines.twin("StableDiffusionPipeline")
    own, calls = pipe.unet.forward, []

    def drifts(sample, *args, **kwargs):
        calls.append(1)
        return own(sample * (1 + 1e-4 * len(calls)), *args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", drifts)
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0].register_forward_hook(lambda m, a, out: out.detach())
    inspected = inspection(pipe, trial_arguments=pipelines.call_arguments(pipe), device="cpu")
    assert inspected["replay"].startswith("not exact: log-probabilities differ by ")
    assert inspected["gradient"].startswith("reaches ") and not inspected["gradient"].startswith("reaches 32 of 32")


def test_memory_grows_with_the_picture_and_leaves_the_weights_out():
    def kept(size):
        size, unit = looked_at("StableDiffusionPipeline", height=size, width=size)["memory per sample"].split()[1:3]
        return float(size) * {"KiB": 1, "MiB": 1024}[unit]

    assert 3.5 < kept(64) / kept(32) < 8  # four times the pixels; attention grows with their square


def test_targets_are_counted_by_their_endings():
    pipe = pipelines.twin("FluxPipeline")
    names, others = lora_targets(pipe)
    linear = sum(isinstance(layer, torch.nn.Linear) for layer in pipe.transformer.modules())
    assert names["to_out.0"] == 1 and names["to_q"] == 2 and sum(names.values()) + sum(others.values()) == linear


def test_what_is_no_model_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "model_index.json").write_text(json.dumps({"_class_name": "PipelineOfTomorrow"}))
    monkeypatch.chdir(tmp_path)
    for words, match in {
        ("NopePipeline",): "got 'NopePipeline', which is no pipeline class of diffusers",
        ("empty",): "empty: no model_index.json there",
        ("new",): "got 'PipelineOfTomorrow', which is no pipeline class of diffusers",
        ("AmusedPipeline",): "AmusedPipeline is no policy: its steps draw discrete tokens",
        ("FluxPipeline", "--call", "moon=1"): "policy.moon: FluxPipeline takes no such argument",
        ("FluxPipeline", "--call", "moon"): "--call moon: takes KEY=VALUE",
    }.items():
        monkeypatch.setattr(sys, "argv", ["mmalign", "inspect", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        done = capsys.readouterr()
        assert end.value.code == 2 and match in done.err and done.err.count("\n") == 1, done.err


def test_a_pipeline_without_a_denoiser_is_refused():
    from diffusers import AutoencoderKL, DiffusionPipeline

    class Nothing(DiffusionPipeline):
        def __init__(self, vae):
            super().__init__()
            self.register_modules(vae=vae)

        def __call__(self, prompt=None, num_inference_steps=1):
            return (torch.zeros(1, 3, 8, 8),)

    with pytest.raises(UserError, match="Nothing registers vae; takes its denoiser under one of the names transformer"):
        inspection(Nothing(pipelines.build(AutoencoderKL, {})), device="cpu")


def test_the_command_prints_the_table_and_writes_a_yaml_that_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["inspect", "digits", "--call", "guidance_scale=3", "--out", "start.yaml"], ["check", "start.yaml"]):
        monkeypatch.setattr(sys, "argv", ["mmalign", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        done = capsys.readouterr()
        assert not end.value.code, done.err
        if words[0] == "inspect":
            assert "one doubled batch" in done.out and "exact (difference 0.0)" in done.out and 'pipeline: {"use": "digits"}' in done.out
    assert done.out == "start.yaml: no mistakes found\n"
