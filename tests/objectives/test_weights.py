from __future__ import annotations

import pytest
import torch

from mmalign.objectives import weights
from mmalign.objectives.feedback import shaping
from mmalign.types import UserError

MASK = torch.tensor([[True, True, True, False], [False, True, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("weigh", "first", "second"),
    [(weights.token_mean, 1 / 4, 1 / 4), (weights.sequence_mean, 1 / 6, 1 / 2)],
)
def test_means_by_hand(weigh, first: float, second: float) -> None:  # type: ignore[no-untyped-def]
    got = weigh(MASK)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, torch.tensor([[first] * 3 + [0], [0, second, 0, 0], [0] * 4], dtype=torch.float64))
    torch.testing.assert_close(got.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert not weigh(MASK & False).any()


def test_constant_length_by_hand() -> None:
    torch.testing.assert_close(weights.constant_length(MASK, length=10), MASK.double() / 20)
    with pytest.raises(UserError, match="length: got 0"):
        weights.constant_length(MASK, length=0)


def test_soft_overlong_by_hand() -> None:
    got = shaping.soft_overlong(torch.tensor([1, 6, 7, 9, 10, 12]), max_length=10, buffer=4)
    assert got.tolist() == [0, 0, -0.25, -0.75, -1, -1]
    with pytest.raises(UserError, match="buffer: got 11"):
        shaping.soft_overlong(torch.tensor([1]), max_length=10, buffer=11)
