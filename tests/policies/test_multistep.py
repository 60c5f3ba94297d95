"""Rollouts whose steps without noise are of second order, against diffusers' own DPM-Solver++."""

from __future__ import annotations

import diffusers as package
import pytest
import torch

import mmalign as mm
from mmalign.policies.twins import pipelines
from mmalign.samplers import branches, kernels, structure
from mmalign.samplers.windows import all_but_last, everything, first_fraction
from mmalign.types import UserError
from tests.policies.test_diffusers import KERNELS, diffusers, make, shaken

PLANS = {
    "preserving": ("StableDiffusionPipeline", {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
    "flow": ("SanaPipeline", {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}),
}


@pytest.mark.parametrize("name", PLANS)
def test_without_noise_a_rollout_goes_where_diffusers_goes(name):
    kind, plan = PLANS[name]
    scheduler = package.DPMSolverMultistepScheduler(**plan, solver_order=2, final_sigmas_type="zero")
    pipe = shaken(pipelines.twin(kind, scheduler=scheduler))
    call = pipelines.call_arguments(pipe)
    ends = {}
    for order in (1, 2):
        policy = diffusers(pipe, steps=6, call=call, kernel=kernels.ode(), order=order, device="cpu")
        rollout = policy.sample(["a red fox"], 2, torch.Generator().manual_seed(0))
        own = policy.generate(rollout.prompts, rollout.held.starts.tolist())
        ends[order] = float((rollout.outputs - own).abs().max())
    assert ends[2] < 1e-4 < ends[1], ends


@pytest.mark.parametrize("structure_of", [None, branches.at_each_step(children=2)])
def test_steps_with_noise_are_played_again_to_the_last_bit(structure_of):
    """And those after them begin anew: what comes before, and the first step with noise, are not changed by the order of others."""
    more = {"kernel": KERNELS["flow"], "window": first_fraction(fraction=0.5), "branches": structure_of}
    rollouts = {}
    for order in (1, 2):
        policy = make("digits_sd3", **more, order=order)
        rollouts[order] = policy.sample(["a 1", "a 2"], 4, torch.Generator().manual_seed(0))
        with torch.no_grad():
            replayed = policy.steps(rollouts[order], torch.arange(8)).log_probs
        cells = rollouts[order].log_probs[:, rollouts[order].held.columns]
        torch.testing.assert_close(replayed, cells, rtol=0, atol=0.0 if structure_of is None else 1e-3)
    one, two = (rollouts[order].held.x_next for order in (1, 2))
    if structure_of is None:  # two steps with noise, a first one of the ODE after them, and the last one, into clean data
        assert torch.equal(one, two)
    assert torch.equal(one[0], two[0])


def test_the_second_step_after_noise_is_of_second_order():
    seen = {}
    for order in (1, 2):
        policy = make("digits_sd3", kernel=KERNELS["flow"], window=lambda count, step, rng: torch.arange(count) == 0, order=order)
        seen[order] = policy.sample(["a 1"], 2, torch.Generator().manual_seed(0)).held.x_next
    same = [torch.equal(one, two) for one, two in zip(seen[1], seen[2], strict=True)]
    assert same == [True, True, False, False]


def test_it_is_refused_where_a_gradient_goes_back_through_the_steps():
    how = {"num_steps": 4, "group_size": 2, "steps": 1, "order": 2}
    with pytest.raises(UserError, match=r"policy\.schedule\.order: got 2, and this method goes back through steps one by one; takes 1"):
        structure.refuse(mm.methods.draft(), all_but_last(), None, None, **how)
    structure.refuse(mm.methods.flow_grpo(), everything(), None, None, **how)
