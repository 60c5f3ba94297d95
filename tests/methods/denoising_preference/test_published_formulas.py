"""Losses on fixed numbers, against the formulas of the published codes, written as they write them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

import mmalign as mm
from mmalign.types import Feedback, Steps
from tests.methods.denoising_preference.test_diffusion_dpo import PAIRS, SIZE, ours, predictions

LABELS = torch.tensor([1, 0, 1, 1, 0, 1])


def kto_code(target, model, ref, halo, beta):
    """diffusion-kto's train_kto_sd_v1.5.py: ``h`` of a label's sign times beta times the gain over the batch's mean."""
    losses, ref_losses = ((prediction - target).pow(2).mean(dim=[1, 2, 3]) for prediction in (model, ref))
    gain = ref_losses - losses
    gain = gain - gain.mean().detach().clamp(min=0)
    signed = (2 * LABELS - 1) * beta * gain
    h = {
        "sigmoid": lambda: torch.sigmoid(signed), "loss_averse": lambda: functional.logsigmoid(signed),
        "risk_seeking_3": lambda: -functional.logsigmoid(-signed),
    }[halo]()  # fmt: skip
    return (1 - h).mean()


@pytest.mark.parametrize(
    ("utility", "halo"), [("kahneman_tversky", "sigmoid"), ("loss_averse", "loss_averse"), ("risk_seeking", "risk_seeking_3")]
)
def test_diffusion_kto(utility, halo):
    target, model, ref = predictions()
    bounds = [-0.5 * ((prediction - target) ** 2).flatten(1).sum(1, keepdim=True) for prediction in (model, ref)]
    steps = Steps(bounds[0], torch.ones(2 * PAIRS, 1).bool(), refs={"ref": bounds[1]}, event_size=SIZE, kind="bound")
    nothing = torch.full((2 * PAIRS,), math.nan).double()
    method = mm.methods.diffusion_kto(utility=utility)
    with torch.no_grad():
        signal = method.survey(steps, method.signal(Feedback(nothing, torch.arange(2 * PAIRS), labels=LABELS.double())))
    value = (method.weigh(steps.mask) * method.loss(steps, signal).values).sum()
    wanted = kto_code(target, model, ref, halo, 1000)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, model, retain_graph=True)[0] for loss in (value, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


def rpo_code(target, model, ref, beta):
    """RPO's rpo_sd.py (beta is 1 there, and applied in train_sdxl.py): pictures of the subject in the first half, samples in the second."""
    loss_s, loss_x = (model - target).pow(2).mean(dim=(1, 2, 3)).chunk(2)
    ref_s, ref_x = (ref - target).pow(2).mean(dim=(1, 2, 3)).chunk(2)
    ahead = beta * ((ref_s - loss_s) - (ref_x - loss_x))
    return loss_s.mean() - functional.logsigmoid(ahead).mean()


@pytest.mark.parametrize("beta", [1.0, 1000.0])
def test_rpo_for_subjects(beta):
    target, model, ref = predictions()
    value, wanted = ours(mm.methods.subject_rpo(beta=beta), target, model, ref), rpo_code(target, model, ref, beta)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, model, retain_graph=True)[0] for loss in (value, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)
