from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives import links
from mmalign.types import UserError


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def test_by_hand():
    assert links.logistic(number(2.0), beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert [links.hinge(number(m), beta=0.5).item() for m in (-2.0, 1.0, 3.0)] == [2.0, 0.5, 0.0]
    assert links.squared(number(2.0), beta=0.1).item() == pytest.approx(9.0)  # (2 - 5)^2


@pytest.mark.parametrize("name", ["logistic", "hinge", "squared"])
@pytest.mark.parametrize("size", [1e4, -1e4, 5e7, -5e7])
def test_finite_at_any_margin(name, size):
    margin = number(size).requires_grad_()
    value = links.soft(links.named(name, beta=1.0), margin, number(0.7))
    value.backward()
    assert value.isfinite() and margin.grad.isfinite() and margin.grad != 0


def test_the_loss_is_lowest_where_the_margin_says_what_people_say():
    """A logistic link with p = .8 has its minimum at beta margin = logit p; a tie has it at 0."""
    for strength in (0.8, 0.5):
        best = number(math.log(strength / (1 - strength)) / 2.0).requires_grad_()
        links.soft(links.named("logistic", beta=2.0), best, number(strength)).backward()
        assert best.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_flips():
    assert links.smoothed(number([1.0, 0.5, 0.8]), flips=0.1).tolist() == pytest.approx([0.9, 0.5, 0.74])


def test_mistakes():
    with pytest.raises(UserError, match="'probit', takes one of logistic, hinge, squared"):
        links.named("probit", beta=1.0)
    with pytest.raises(UserError, match="beta: got 0"):
        links.named("logistic", beta=0)
