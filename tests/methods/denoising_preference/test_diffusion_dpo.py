"""The loss on fixed numbers, against the formulas of the published codes, written as they write them (halves of one batch)."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import mmalign as mm
from mmalign.types import Feedback, Steps

PAIRS, SHAPE = 3, (4, 8, 8)
SIZE = math.prod(SHAPE)


def predictions():
    """Target, and what the policy and the reference predict, ``[2N, 4, 8, 8]``: better images in the first half."""
    rng = torch.Generator().manual_seed(7)
    target = torch.randn(2 * PAIRS, *SHAPE, generator=rng, dtype=torch.float64)
    model = target + 0.1 * torch.randn(target.shape, generator=rng, dtype=torch.float64)
    ref = target + 0.1 * torch.randn(target.shape, generator=rng, dtype=torch.float64)
    return target, model.requires_grad_(), ref


def ours(method, target, model, ref):
    """Better and worse rows side by side, log-probabilities as bounds."""
    side_by_side = torch.arange(2 * PAIRS).view(2, PAIRS).T.flatten()
    bounds = [-0.5 * ((prediction - target) ** 2).flatten(1).sum(1, keepdim=True)[side_by_side] for prediction in (model, ref)]
    steps = Steps(bounds[0], torch.ones(2 * PAIRS, 1, dtype=torch.bool), refs={"ref": bounds[1]}, event_size=SIZE, kind="bound")
    nothing = torch.full((2 * PAIRS,), math.nan, dtype=torch.float64)
    feedback = Feedback(nothing, torch.arange(2 * PAIRS) // 2, pairs=torch.arange(2 * PAIRS).view(-1, 2))
    return (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()


def official(target, model, ref, beta):
    """DiffusionDPO train.py, and diffusers' SDXL script."""
    model_w, model_l = (model - target).pow(2).mean(dim=[1, 2, 3]).chunk(2)
    ref_w, ref_l = (ref - target).pow(2).mean(dim=[1, 2, 3]).chunk(2)
    return -functional.logsigmoid(-0.5 * beta * ((model_w - model_l) - (ref_w - ref_l))).mean()


def script_for_sd15(target, model, ref, beta):
    """diffusers' script for StableDiffusion 1.5: no 1/2."""
    model_w, model_l = functional.mse_loss(model, target, reduction="none").mean(dim=[1, 2, 3]).chunk(2)
    ref_w, ref_l = functional.mse_loss(ref, target, reduction="none").mean(dim=[1, 2, 3]).chunk(2)
    return -functional.logsigmoid(beta * ((ref_w - ref_l) - (model_w - model_l))).mean()


CASES = {
    "official": (mm.methods.diffusion_dpo(), lambda *numbers: official(*numbers, 5000)),
    "sd15": (mm.methods.diffusion_dpo(half=False, beta=2500), lambda *numbers: script_for_sd15(*numbers, 2500)),
    "the same numbers": (mm.methods.diffusion_dpo(half=False, beta=2500), lambda *numbers: official(*numbers, 5000)),
    "summed": (mm.methods.diffusion_dpo(error="sum", beta=5000 / SIZE), lambda *numbers: official(*numbers, 5000)),
    "flow": (mm.methods.flow_dpo(beta=100), lambda *numbers: official(*numbers, 100)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_published_formula(case):
    method, formula = CASES[case]
    target, model, ref = predictions()
    value = ours(method, target, model, ref)
    (gradient,) = torch.autograd.grad(value, model)
    wanted = formula(target, model, ref)
    (wanted_gradient,) = torch.autograd.grad(wanted, model)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-14)


def test_a_number_to_hold_on_to():
    assert ours(mm.methods.diffusion_dpo(), *predictions()).item() == pytest.approx(0.5255672787643997, rel=1e-9)
