"""Rehearsals of configs as they are, and what a rehearsal refuses."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.commands import _rehearsal_config, rehearse
from mmalign.config import load
from mmalign.policies.pipelines.loading.model_index import read_index
from mmalign.policies.twins.rehearsal import twin
from mmalign.rewards._shared.stand_in import stand_in
from mmalign.types import UserError

NAMES = ["check", "twin", "rollout", "reward", "update", "resume", "export"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", ["sd35_medium/flow_grpo", "wan21_1b/dpo", "digits/demo", "reward_models/text"])
def test_every_phase(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    phases = rehearse(load(name, ["run.trackers=[]", *(["policy.schedule.steps=3"] if name == "sd35_medium/flow_grpo" else [])]))
    assert [phase.name for phase in phases if not phase.failed] == NAMES, phases[-1].what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama32_1b/dpo", "llava15_7b/dpo"])
def test_records_of_the_hub_are_stood_in_for(name):
    phases = rehearse(load(name, ["run.trackers=[]"]))
    assert [phase.name for phase in phases if not phase.failed] == NAMES, phases[-1].what


def test_a_reference_that_is_another_model_has_a_twin_too():
    larger = "references.ref.policy={use: transformers, model: Qwen/Qwen2.5-7B-Instruct, dtype: bfloat16}"
    phases = rehearse(load("qwen25_0b/grpo", ["run.trackers=[]", larger]))
    assert [phase.name for phase in phases if not phase.failed] == NAMES, phases[-1].what


def test_a_teacher_of_another_name_has_other_weights_in_the_same_latents():
    def twins(*changes):
        node = _rehearsal_config.rehearsal_config(load("sd35_medium/diffusion_opd", changes)).node
        made = [{key: value for key, value in part["pipeline"].items() if key != "use"}
                for part in (node["policy"], node["references"]["teacher"]["policy"])]  # fmt: skip
        return [twin(**arguments).components for arguments in made]

    def equal(one, two, part):
        return all(torch.equal(*pair) for pair in zip(one[part].state_dict().values(), two[part].state_dict().values(), strict=True))

    student, teacher = twins()
    assert equal(student, teacher, "vae") and not equal(student, teacher, "transformer")
    own = "references.teacher.policy.pipeline=" + load("sd35_medium/diffusion_opd")["policy"]["pipeline"]
    assert equal(*twins(own), "transformer")


@pytest.mark.parametrize(
    ("override", "phase", "key"),
    [
        ("policy.lora.targets=[to_z]", "twin", "policy.lora.targets"),
        ("policy.call.heigth=512", "check", "policy.call.heigth: no argument of this policy's calls; nearest: height"),
        ("policy.call.height=500", "rollout", "divisible"),
        ("policy.pipeline=nobody/nothing", "twin", "--class"),
        ("optimizer.rate=0.0", "check", "takes a number above 0"),
        ("policy.schedule.kernel.noise_level=-1", "check", "policy.schedule.kernel.noise_level: got -1, takes 0 or more"),
    ],
)
def test_mistakes_end_at_their_phase(override, phase, key):
    last = rehearse(load("sd35_medium/flow_grpo", [override]))[-1]
    assert last.failed and (last.name, key in last.what) == (phase, True), last


def test_the_command_names_phase_and_key():
    done = CliRunner().invoke(app, ["rehearse", "wan22/dpo", "policy.of.call.audio=512"])
    assert done.exit_code == 2
    assert "failed at twin: policy.call.audio: WanPipeline takes no such argument" in done.output


def test_a_kept_folder_has_to_be_new(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="--keep"):
        rehearse(load("digits/demo"), keep=tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_class_may_be_said():
    assert read_index("nobody/nothing", kind="FluxPipeline").kind == "FluxPipeline"
    with pytest.raises(UserError, match="--class"):
        read_index("nobody/nothing")


def test_a_folder_tells_class_parts_and_scheduler(tmp_path):
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    index = {"_class_name": "WanPipeline", "transformer_2": [None, None], "boundary_ratio": None, "vae": ["diffusers", "AutoencoderKLWan"]}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UserError, match="no model_index"):
        read_index(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    phases_read = read_index(str(tmp_path))
    assert phases_read[:3] == ("WanPipeline", ("transformer_2", "boundary_ratio"), scheduler)
    pipe = twin(*phases_read[:3])
    assert pipe.transformer_2 is None and pipe.config.boundary_ratio is None and pipe.scheduler.config.shift == 3.0
    with pytest.raises(UserError, match="is a WanPipeline"):
        read_index(str(tmp_path), kind="FluxPipeline")


def test_numbers_keep_their_structure():
    batch = _rehearsal_config._sizes({"rewards": {}, "batch": {"group": 24, "micro_rows": 3, "prompts": 48, "updates": 2}})["batch"]
    assert batch == {"group": 4, "micro_rows": 3, "prompts": 2, "updates": 2}
    assert _rehearsal_config._sizes({"rewards": {}, "batch": {"group": 8, "micro_rows": 64}})["batch"]["micro_rows"] == 4


def test_a_stand_in_varies_and_has_a_gradient():
    outputs = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reward = stand_in("pickscore")
    scores = reward(outputs, ["a"] * 4, more=[1] * 4)
    assert scores.shape == (4,) and len(scores.unique()) == 4 and bool(((scores >= 0) & (scores <= 1)).all())
    assert torch.equal(scores, reward(outputs, ["a"] * 4)) and not torch.equal(scores, stand_in("hps")(outputs, ["a"] * 4))
    (gradient,) = torch.autograd.grad(scores.sum(), outputs)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0
    assert len({float(value) for value in reward(["a", "b"], ["p", "p"])}) == 2
    with pytest.raises(UserError, match="one for each"):
        reward(outputs, ["a"])
