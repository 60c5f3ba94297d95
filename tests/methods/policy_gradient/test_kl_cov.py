"""KL-Cov: what rounding makes of a policy that has not moved pays nothing; one that has moved pays in full."""

from __future__ import annotations

import torch
from torch import Tensor

import mmalign as mm
from mmalign.types import Feedback, Steps


def gradient(moved: float) -> Tensor:
    """Of the price alone, by each step's log-probability, in nats of price 1 over four steps that all pay."""
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -1.5]], dtype=torch.float64)
    found = []
    for price in (0.0, 1.0):
        leaf = log_probs.clone().requires_grad_()
        method = mm.methods.kl_cov(share=1.0, price=price)
        steps = Steps(log_probs=leaf, mask=torch.ones(2, 2, dtype=torch.bool), old=log_probs - moved)
        signal = method.signal(Feedback(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 0])))
        assert method.survey is not None
        surveyed = method.survey(steps.each(Tensor.detach), signal)
        (method.weigh(steps.mask) * method.loss(steps, surveyed).values).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    return found[1] - found[0]


def test_rounding_is_no_departure() -> None:
    for moved in (0.0, 1e-13, -1e-13):
        assert gradient(moved).abs().max() < 1e-8
    torch.testing.assert_close(gradient(1e-3), torch.full((2, 2), 0.25).double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradient(-1e-3), torch.full((2, 2), -0.25).double(), rtol=1e-6, atol=0.0)
