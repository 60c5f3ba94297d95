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
    link = links.named(name, beta=1.0)
    value = 0.7 * link(margin) + 0.3 * link(-margin)
    value.backward()
    assert value.isfinite() and margin.grad.isfinite() and margin.grad != 0


def test_the_loss_is_lowest_where_the_margin_says_what_people_say():
    """A logistic link with p = .8 has its minimum at beta margin = logit p; a tie has it at 0."""
    for strength in (0.8, 0.5):
        best = number(math.log(strength / (1 - strength)) / 2.0).requires_grad_()
        link = links.named("logistic", beta=2.0)
        (strength * link(best) + (1 - strength) * link(-best)).backward()
        assert best.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_flips():
    """rDPO's correction takes back what flips do to the expected loss."""
    clean = links.ahead(links.named("logistic", beta=0.5))
    flipped = links.unbiased(links.smoothed(clean, flips=0.1), flips=0.1)
    assert flipped(number(2.0), number(0.5)).item() == pytest.approx(clean(number(2.0), number(0.5)).item())
    assert links.smoothed(clean, flips=0.1)(number(2.0), number(0.0)).item() == pytest.approx(
        0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.exp(1))
    )
    with pytest.raises(UserError, match=r"flips: got 0\.5"):
        links.unbiased(clean, flips=0.5)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_discopop_where_others_are_nan(tau):
    """sigmoid(z / tau) * exp(-z), as TRL and ms-swift write it, is 0 * inf for z below -89 in float32."""
    far = number([-100.0, -1e4, 1e4]).requires_grad_()
    value = links.discovered(far, beta=1.0, tau=tau)
    value.sum().backward()
    assert value.isfinite().all() and far.grad.isfinite().all()
    if tau == 0.05:
        assert value.tolist() == pytest.approx([100.0, 1e4, 0.0]) and far.grad.tolist() == pytest.approx([-1.0, -1.0, 0.0])


def test_exo_is_a_divergence():
    even = number(math.log(0.9 / 0.1) / 2).requires_grad_()
    value = links.exact(even, beta=2.0, flips=0.1)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-12) and even.grad.item() == pytest.approx(0.0, abs=1e-12)
    assert links.exact(number(1e4), beta=1.0, flips=0.1).item() == pytest.approx(-math.log(0.9))


@pytest.mark.parametrize("name", ["noise_contrastive", "classified", "anchored_up", "anchored_down", "regressed"])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_two_scores_far_away(name, size):
    better, worse = number(size).requires_grad_(), number(-size).requires_grad_()
    value = getattr(links, name)(better, worse, beta=1.0)
    value.backward()
    assert value.isfinite() and better.grad.isfinite() and worse.grad.isfinite()


def test_mistakes():
    with pytest.raises(UserError, match="'probit', takes one of logistic, hinge, squared"):
        links.named("probit", beta=1.0)
    with pytest.raises(UserError, match="beta: got 0"):
        links.named("logistic", beta=0)
