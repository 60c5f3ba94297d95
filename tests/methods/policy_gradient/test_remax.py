from __future__ import annotations

import pytest
import torch

from mmalign.methods.policy_gradient.remax import remax
from mmalign.needs import MASK
from mmalign.types import Feedback, UserError


def test_the_greedy_row_is_the_baseline() -> None:
    mask = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    drawn = {"greedy": torch.tensor([False, True, False, False])}
    feedback = Feedback(torch.tensor([1.0, 3.0, 7.0, 5.0]).double(), torch.tensor([0, 0, 0, 1]), tables={MASK: mask}, drawn=drawn)
    method = remax()
    assert method.signal(feedback).tolist() == [[-2, -2], [0, 0], [4, 0], [0, 0]]
    assert method.keep is not None and method.keep(feedback).tolist() == [True, False, True, False]
    assert [(behavior.part, behavior.greedy) for behavior in method.behaviors] == [(0, True)]


def test_a_rollout_without_greedy_rows_is_refused() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    feedback = Feedback(torch.zeros(2).double(), torch.zeros(2, dtype=torch.int64), tables={MASK: mask})
    with pytest.raises(UserError, match=r"Feedback.drawn: got \[\], this method takes rows drawn by 'greedy'"):
        remax().signal(feedback)
