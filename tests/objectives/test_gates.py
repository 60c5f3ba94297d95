from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives.terms import gates
from mmalign.types import Steps, UserError


def steps(now: list[float], old: list[float]) -> Steps:
    mask = torch.ones(1, len(now), dtype=torch.bool)
    return Steps(torch.tensor([now], dtype=torch.float64).log(), mask, torch.tensor([old], dtype=torch.float64).log())


def signal(*advantages: float) -> gates.Signal:
    advantage = torch.tensor([advantages]).double()
    return gates.Signal(advantage, advantage[..., None][..., :0], advantage[..., None][..., :0])


def test_a_rare_token_may_double_and_a_sure_one_not() -> None:
    """Ratios of 2 and of 1.5: it is the move of the probability that counts, and only the way the advantage pulls."""
    at = steps([0.02, 0.9, 0.9, 0.6], [0.01, 0.6, 0.6, 0.9])
    gate = gates.divergence("tv", low=0.2, high=0.2)
    assert gate.of(at, signal(1, 1, -1, -1)).tolist() == [[1, 0, 1, 0]]
    assert gates.divergence("tv", low=0.4, high=0.4).of(at, signal(1, 1, -1, -1)).tolist() == [[1, 1, 1, 1]]


def test_what_is_left_of_a_large_ratio_weighs_as_much_as_the_largest() -> None:
    """Ratios of 4, 2 and 1/2; the first way it is pulled has moved too far."""
    gate = gates.divergence("tv", low=0.2, high=0.2, largest=1.6)
    at = steps([0.4, 0.04, 0.1, 0.4], [0.1, 0.02, 0.2, 0.1])
    assert gate.of(at, signal(1, 1, -1, -1)).tolist() == [[0, pytest.approx(0.8), 1, pytest.approx(0.4)]]
    with pytest.raises(UserError, match="largest"):
        gates.divergence("tv", low=0.2, high=0.2, largest=0.5)


def test_the_binary_kl_is_that_of_one_token_or_another() -> None:
    exact = 0.6 * math.log(0.6 / 0.9) + 0.4 * math.log(0.4 / 0.1)
    for bound, kept in ((exact - 1e-9, 0.0), (exact + 1e-9, 1.0)):
        assert gates.divergence("kl", low=bound, high=bound).of(steps([0.9], [0.6]), signal(1.0)).item() == kept
    certain = gates.divergence("kl", low=0.1, high=0.1).of(steps([1.0, 0.5], [1.0, 1.0]), signal(1.0, -1.0))
    assert certain.isfinite().all()


def test_a_gamma_weight_is_one_on_policy_and_highest_where_it_says() -> None:
    gate = gates.gamma(k=(2.0, 3.0), scale=(3.0, 2.0))
    weights = gate.of(steps([0.5], [0.5]), signal(1.0))
    assert weights.item() == pytest.approx(1.0)
    at = [gate.of(steps([0.5 * w], [0.5]), signal(1.0)).item() for w in (0.6, 2 / 3, 0.74)]
    assert max(at) == at[1]


def test_bounds_are_absolute() -> None:
    gate = gates.within(0.0, 1.5)
    assert gate.of(steps([0.1, 0.6], [0.4, 0.2]), signal(1, 1)).tolist() == [[pytest.approx(0.25), 1.5]]
    with pytest.raises(UserError, match="largest"):
        gates.within(2.0, 1.0)


def test_the_largest_are_taken_from_the_candidates() -> None:
    values, candidates = torch.tensor([[5.0, 1.0, 4.0], [3.0, 2.0, 9.0]]), torch.tensor([[True, True, False], [True, True, False]])
    assert gates.largest(values, candidates, 2).tolist() == [[True, False, False], [True, False, False]]
    assert torch.equal(gates.largest(values, candidates, 9), candidates)
