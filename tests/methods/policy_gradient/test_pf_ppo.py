from __future__ import annotations

import pytest
import torch

from mmalign.objectives.feedback import advantages

REWARDS = torch.tensor([1.0, 4.0, -3.0, 2.0, 5.0, 5.0, float("nan"), 1.0, 1.0]).double()
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize("keep", ["best_worst", "best_random", "power"])
def test_shares_of_a_group_add_up_to_its_rows(keep) -> None:
    weights = advantages.filtered(REWARDS, GROUP, keep=keep)
    assert [float(weights[group == GROUP].sum()) for group in range(3)] == [pytest.approx(4), 2, 2]
    assert weights[6] == 0 and weights[4] == weights[5] == 1


def test_the_best_and_the_worst_have_half_of_the_draws_each() -> None:
    assert advantages.filtered(REWARDS, GROUP, keep="best_worst")[:4].tolist() == [0, 2, 2, 0]
    assert advantages.filtered(REWARDS, GROUP, keep="best_random")[:4].tolist() == [
        pytest.approx(2 / 3),
        2,
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    ]
    assert advantages.filtered(REWARDS, GROUP, keep="power", power=2.0)[:4].tolist() == [
        pytest.approx(4 * r * r / 30) for r in (1, 4, -3, 2)
    ]
