"""One sentence for every kind of steps."""

from __future__ import annotations

import pytest
import torch

from mmalign.methods import diffusion_dpo, dpo, ipo
from tests.oracles.tables import table


def loss(method, at):
    steps = at.steps()
    value = (method.weigh(steps.mask) * method.loss(steps, method.signal(at.feedback())).values).sum()
    value.backward()
    return value, at.leaf.grad


@pytest.mark.parametrize("beta", [0.5, 300.0])
def test_on_denoising_errors_it_is_diffusion_dpo(beta):
    ours, theirs = loss(dpo(beta=beta, margin="per_scalar"), table("bound")), loss(diffusion_dpo(beta=beta), table("bound"))
    torch.testing.assert_close(ours, theirs)


def test_so_is_ipo():
    ours, theirs = loss(ipo(beta=0.2), table("bound")), loss(diffusion_dpo(beta=0.2, error="sum", link="squared"), table("bound"))
    torch.testing.assert_close(ours, theirs)
