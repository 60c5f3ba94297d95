from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives import ratios
from mmalign.types import Steps, UserError

MASK = torch.tensor([[True, True, False], [False, False, False]])


def steps(**more: object) -> Steps:
    log_probs = torch.tensor([[1.0, 2.0, math.nan], [math.nan] * 3], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[0.0, 4.0, 7.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    return Steps(log_probs, MASK, old, event_size=4, kind="transition", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("per_step", [1, -2, 0]),
        ("per_scalar", [0.25, -0.5, 0]),
        ("per_sequence", [-0.5, -0.5, 0]),
        ("whole_sequence", [-1, -1, 0]),
        ("cps", [0.25 * 2 * 0.25, -0.5 * 2 * 9, 0]),
    ],
)
def test_dialects_by_hand(name: str, wanted: list[float]) -> None:
    std = torch.tensor([[0.5, 3.0, math.nan], [math.nan] * 3], dtype=torch.float64)
    table = steps(facts={"std": std})
    got = ratios.named(name).of(table)
    torch.testing.assert_close(got, torch.tensor([wanted, [0.0] * 3], dtype=torch.float64))
    got.sum().backward()
    assert table.log_probs.grad is not None and table.log_probs.grad.isfinite().all() and not table.log_probs.grad[~MASK].any()


def test_the_old_policy_gets_no_gradient() -> None:
    live = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    ratios.per_step(Steps(live, torch.ones(1, 1, dtype=torch.bool), live)).sum().backward()
    assert live.grad is not None and live.grad.item() == 1


def test_cps_is_the_public_code_s_difference_of_squares() -> None:
    rng = torch.Generator().manual_seed(0)
    x, mean, old = (torch.randn(1, 1, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    std = torch.full((1, 1), 0.3, dtype=torch.float64)
    density = [-((x - center) ** 2).sum(-1) / (2 * std**2) for center in (mean, old)]
    table = Steps(density[0], torch.ones(1, 1, dtype=torch.bool), density[1], facts={"std": std}, event_size=4, kind="transition")
    torch.testing.assert_close(ratios.cps(table), -((x - mean) ** 2).mean(-1) + ((x - old) ** 2).mean(-1))


def test_errors_name_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"Steps\.old"):
        ratios.per_step(Steps(torch.zeros(1, 1).double(), torch.ones(1, 1, dtype=torch.bool)))
    with pytest.raises(UserError, match="takes 'std'"):
        ratios.cps(steps())
    with pytest.raises(UserError, match=r"got 'per_token', takes one of per_step, per_scalar"):
        ratios.named("per_token")
