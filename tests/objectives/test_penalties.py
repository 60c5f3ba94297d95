from __future__ import annotations

import math

import pytest
import torch

from mmalign.needs import DT, STD, kls, refs
from mmalign.objectives import penalties
from mmalign.types import Steps, UserError
from tests.oracles.tables import SIZE, table


def pair(difference: float) -> Steps:
    """One cell where log pi - log ref is the difference, and a dead one."""
    log_probs = torch.tensor([[difference, math.nan]], dtype=torch.float64, requires_grad=True)
    return Steps(log_probs, torch.tensor([[True, False]]), refs={"ref": torch.zeros(1, 2).double()})


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", math.exp(0.5) - 1.5, 1 - math.exp(0.5))],
)
def test_estimators_by_hand(name: str, value: float, gradient: float) -> None:
    steps, part = pair(-0.5), penalties.named(name, beta=2.0)
    assert part is not None and part.needs == {refs("ref")}
    part.of(steps).sum().backward()
    torch.testing.assert_close(part.of(steps).detach(), torch.tensor([[2 * value, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(steps.log_probs.grad, torch.tensor([[2 * gradient, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("difference", [-1e4, -710.0, 710.0, 1e4])
def test_k3_is_finite_and_pulls_back_from_any_distance(difference: float) -> None:
    steps = pair(difference)
    value = penalties.k3(steps)
    value.sum().backward()
    assert value.isfinite().all() and value[0, 0] > 100
    assert steps.log_probs.grad is not None and steps.log_probs.grad.isfinite().all()
    assert steps.log_probs.grad[0, 0].sign() == math.copysign(1, difference)


def test_estimators_agree_with_the_exact_kl_in_the_mean() -> None:
    """Over all tokens of a vocabulary, weighted by pi: the mean of k1 and of k3 is the KL; k2's gradient is the KL's gradient."""
    leaf = torch.tensor([0.3, -1.0, 0.4, 1.1], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.2, -0.4, 0.5], dtype=torch.float64).log_softmax(-1)
    log_probs = leaf.log_softmax(-1)
    chance = log_probs.exp().detach()
    steps = Steps(log_probs[None], torch.ones(1, 4, dtype=torch.bool), refs={"ref": ref[None]})
    kl = (log_probs.exp() * (log_probs - ref)).sum()
    torch.testing.assert_close((chance * penalties.k1(steps)).sum(), kl)
    torch.testing.assert_close((chance * penalties.k3(steps)).sum(), kl)
    wanted = torch.autograd.grad(kl, leaf, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad((chance * penalties.k2(steps)).sum(), leaf, retain_graph=True)[0], wanted)
    nothing = torch.autograd.grad((chance * penalties.k1(steps)).sum(), leaf)[0]
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), atol=1e-15, rtol=0)


def test_dialects_of_the_gaussian_kl() -> None:
    at = table("transition")
    steps, live = at.steps(), at.mask
    square = (at.mean - at.mean_ref) ** 2  # type: ignore[operator]
    for name, wanted, needs in (
        ("paper", square.sum(-1) / (2 * at.std**2), {kls("ref")}),
        ("per_scalar", square.mean(-1) / (2 * at.std**2), {kls("ref")}),
        ("flow_grpo", square.mean(-1) / (2 * at.std**2) * at.dt.abs(), {kls("ref"), DT}),
        ("mean_distance", square.mean(-1), {kls("ref"), STD}),
    ):
        part = penalties.named(name, beta=1.0)
        assert part is not None and part.needs == needs and SIZE > 1
        torch.testing.assert_close(part.of(steps), torch.where(live, wanted, 0.0))


def test_names_and_errors() -> None:
    assert penalties.named("paper", beta=0.0) is None
    opponent = penalties.named("k2", beta=1.0, name="previous")
    assert opponent is not None and opponent.needs == {refs("previous")}
    with pytest.raises(UserError, match=r"got 'backward', takes one of paper"):
        penalties.named("backward", beta=0.0)
    with pytest.raises(UserError, match="beta: got -1"):
        penalties.named("k3", beta=-1)
    with pytest.raises(UserError, match=r"Steps\.kls: got \[\]"):
        penalties.exact_kl(pair(0.0))
    with pytest.raises(UserError, match=r"Steps\.refs: got \['ref'\]"):
        penalties.k3(pair(0.0), "previous")
