from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives import surrogates
from mmalign.objectives.parts import CAP, bounded_exp, bounded_expm1
from mmalign.types import UserError


def cell(value: float, *, grad: bool = False) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64, requires_grad=grad)


# ratio, advantage, value, gradient of the log-ratio, clipped; low .2, high .5, dual 3
CASES = [
    (1.0, 2.0, -2.0, -2.0, False),
    (1.4, 2.0, -2.8, -2.8, False),
    (1.6, 2.0, -3.0, 0.0, True),
    (0.5, 2.0, -1.0, -1.0, False),
    (0.5, -2.0, 1.6, 0.0, True),
    (0.9, -2.0, 1.8, 1.8, False),
    (2.0, -2.0, 4.0, 4.0, False),
    (4.0, -2.0, 6.0, 0.0, True),
]


@pytest.mark.parametrize(("ratio", "advantage", "value", "gradient", "clipped"), CASES)
def test_clipped_by_hand(ratio: float, advantage: float, value: float, gradient: float, clipped: bool) -> None:
    log_ratio = cell(math.log(ratio), grad=True)
    got = surrogates.clipped(log_ratio, cell(advantage), low=0.2, high=0.5, dual=3.0)
    got.values.sum().backward()
    torch.testing.assert_close(got.values.detach(), cell(value))
    torch.testing.assert_close(log_ratio.grad, cell(gradient))
    assert bool(got.clipped) is clipped


def test_without_dual_clip_a_bad_row_far_away_costs_in_proportion() -> None:
    got = surrogates.clipped(cell(math.log(4.0)), cell(-2.0), low=0.2, high=0.5)
    torch.testing.assert_close(got.values, cell(8.0))
    assert not got.clipped.any()


def test_unclipped_is_reinforce_at_ratio_one() -> None:
    log_ratio = cell(0.0, grad=True)
    got = surrogates.unclipped(log_ratio, cell(3.0))
    got.values.sum().backward()
    assert log_ratio.grad is not None and log_ratio.grad.item() == -3 and not got.clipped.any()


@pytest.mark.parametrize("of", [bounded_exp, bounded_expm1])
@pytest.mark.parametrize("at", [-1e4, -5.0, 0.0, 3.0, CAP - 1e-9, CAP + 1e-9, 30.0, 1e4])
def test_exponentials_are_exact_up_to_the_cap_and_straight_beyond(of, at: float) -> None:  # type: ignore[no-untyped-def]
    x = cell(at, grad=True)
    of(x).sum().backward()
    inside = min(at, CAP)
    straight = math.exp(inside) * (1 + at - inside) - (of is bounded_expm1)
    torch.testing.assert_close(of(x).detach(), cell(straight), rtol=1e-12, atol=1e-300)
    torch.testing.assert_close(x.grad, cell(math.exp(inside)), rtol=1e-12, atol=0)


def test_small_differences_do_not_cancel() -> None:
    torch.testing.assert_close(bounded_expm1(cell(1e-12)), cell(1e-12), rtol=1e-11, atol=0)


def test_errors_name_what_was_got() -> None:
    with pytest.raises(UserError, match=r"\[2, 3\].*\[2\]"):
        surrogates.unclipped(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(UserError, match=r"low=-0\.1"):
        surrogates.clipped(cell(0), cell(0), low=-0.1, high=0.2)
    with pytest.raises(UserError, match=r"dual: got 0\.5"):
        surrogates.clipped(cell(0), cell(0), low=0.1, high=0.2, dual=0.5)
