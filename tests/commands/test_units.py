"""A method's numbers in nats for a model: against the formulas of its docstring, with the size of the model's latent."""

from __future__ import annotations

import math
import re

import pytest
import torch

import mmalign as mm
from mmalign.commands import units
from mmalign.policies.inspecting.trajectory import trajectory
from mmalign.policies.twins import pipelines
from mmalign.samplers import kernels
from mmalign.samplers.windows import all_but_last
from mmalign.types import UserError

SIZES = {"height": 32, "width": 64, "num_frames": None}


@pytest.fixture(scope="module")
def found():
    pipe = pipelines.twin("StableDiffusion3Pipeline")
    return trajectory(pipe, {"num_inference_steps": 5, "height": 32, "width": 64}, kernels.flow_sde(noise_level=0.7), all_but_last())


def numbers(line):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", line.partition(":")[2])]


def test_the_trajectory_is_that_of_a_rollout(found):
    pipe = pipelines.twin("StableDiffusion3Pipeline")
    policy = mm.policies.diffusers(pipe, schedule=mm.Schedule(steps=5), call={**pipelines.call_arguments(pipe), "height": 32, "width": 64})
    rollout = policy.sample(["a red fox"], 1, torch.Generator().manual_seed(0))
    assert found.event_size == rollout.held.event_size and found.steps == 5 and len(found.std) == 4
    torch.testing.assert_close(found.dt, rollout.held.dt[0, :4], rtol=1e-6, atol=0)


def test_a_clip_of_scalars_is_the_latents_size_in_nats(found):
    size = found.event_size
    better, worse = (numbers(line) for line in units._clips(mm.methods.flow_grpo(clip=1e-4), found))
    assert better[0] == pytest.approx(size * math.log1p(1e-4), rel=5e-3) and better[1] == pytest.approx(1e-4, rel=5e-3)
    assert better[2] == pytest.approx(4 * size * math.log1p(1e-4), rel=5e-3)
    assert worse[0] == pytest.approx(-size * math.log1p(-1e-4), rel=5e-3)
    better, worse = (numbers(line) for line in units._clips(mm.methods.flow_grpo(clip=0.2, ratio="per_step"), found))
    assert (better[0], worse[0]) == (pytest.approx(math.log(1.2), rel=5e-3), pytest.approx(-math.log(0.8), rel=5e-3))
    first, last = numbers(units._clips(mm.methods.flow_grpo(clip=1e-5, ratio="cps"), found)[0])[:2]
    assert first == pytest.approx(size * math.log1p(1e-5) / (2 * float(found.std[0]) ** 2), rel=5e-3)
    assert last == pytest.approx(size * math.log1p(1e-5) / (2 * float(found.std[-1]) ** 2), rel=5e-3)


def test_a_penalty_is_what_a_nat_of_kl_costs(found):
    (line,) = units._penalties(mm.methods.flow_grpo(beta=0.04), found)
    assert line.startswith("KL to ref: ") and numbers(line)[0] == pytest.approx(0.04)
    (line,) = units._penalties(mm.methods.flow_grpo(beta=0.04, kl="flow_grpo"), found)
    costs = 0.04 * found.dt / found.event_size
    assert numbers(line)[:2] == [pytest.approx(float(costs[0]), rel=5e-3), pytest.approx(float(costs[-1]), rel=5e-3)]
    assert units._penalties(mm.methods.flow_grpo(), found) == []


def test_a_beta_of_mean_errors_is_divided_by_the_latents_size(found):
    for more, factor in (({}, 1), ({"half": False}, 2), ({"error": "sum", "beta": 0.3}, None)):
        (line,) = units._margins(mm.methods.diffusion_dpo(**more), found)
        wanted = 0.3 if factor is None else 5000 * factor / found.event_size
        assert re.search(r"by ([\d.e-]+), so it is 1 at", line)[1] == f"{wanted:.3g}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["kto", "--model", "x"], "x: no such folder"),
        (["flow_grpo", "--height", "512"], "explain: sizes and keywords say what a method's numbers come to for a model"),
        (["flow_grpo", "clip=1e-5"], "explain: sizes and keywords say what a method's numbers come to for a model"),
        (["jpeg", "--model", "x"], "method"),
    ],
)
def test_what_cannot_be_converted_is_one_line(mmalign, words, line):
    code, _, err = mmalign("explain", *words)
    assert code == 2 and line in err and len(err.strip().splitlines()) == 1


def test_a_method_without_such_numbers_is_refused(found, monkeypatch):
    monkeypatch.setattr(units, "trajectory", lambda *args, **more: found)
    with pytest.raises(UserError, match="no clip, no KL and no margin to convert"):
        units.lines(mm.methods.draft(), "x", SIZES)
    head, *said = units.lines(mm.methods.flow_grpo(), "x", SIZES)
    assert "4 of 5 steps are trained" in head and len(said) == 2
