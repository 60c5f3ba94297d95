from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives import divergences
from mmalign.types import UserError


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def test_by_hand():
    ratio = number([math.log(0.5), 0.0, math.log(4.0)])  # u = .5, 1, 4
    assert divergences.named("reverse_kl", alpha=0.5)(ratio).tolist() == pytest.approx([math.log(0.5), 0.0, math.log(4.0)])
    assert divergences.named("forward_kl", alpha=0.5)(ratio).tolist() == pytest.approx([-2.0, -1.0, -0.25])
    assert divergences.named("js", alpha=0.5)(ratio).tolist() == pytest.approx([math.log(1 / 3), math.log(1 / 2), math.log(4 / 5)])
    assert divergences.named("alpha", alpha=0.5)(ratio).tolist() == pytest.approx([2 - 2 / 0.5**0.5, 0.0, 1.0])
    assert divergences.named("alpha", alpha=2.0)(ratio).tolist() == pytest.approx([-0.5, 0.0, 3.0])


def test_alpha_near_one_is_the_reverse_kl():
    ratio = number([-2.0, 0.3, 5.0])
    near = divergences.named("alpha", alpha=1 + 1e-5)(ratio)
    torch.testing.assert_close(near, divergences.named("alpha", alpha=1.0)(ratio), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "alpha"])
@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_far_away_it_is_finite_and_still_rises(name, alpha):
    """TRL's forward KL is inf at -90 nats, and its alpha has no gradient beyond 80."""
    far = number([-1e4, -90.0, 90.0, 1e4]).requires_grad_()
    value = divergences.named(name, alpha=alpha)(far)
    value.sum().backward()
    assert value.isfinite().all() and far.grad.isfinite().all() and (value.diff() >= 0).all()
    steep = far.grad[0] if name == "forward_kl" or alpha < 1 else far.grad[-1]
    assert steep > 0 or name == "js"


def test_mistakes():
    with pytest.raises(UserError, match="'kl', takes one of reverse_kl, forward_kl, js, alpha"):
        divergences.named("kl", alpha=0.5)
