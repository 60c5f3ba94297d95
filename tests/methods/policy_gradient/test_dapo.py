from __future__ import annotations

import pytest
import torch

from mmalign.methods.policy_gradient.dapo import dapo
from mmalign.types import Feedback, UserError


def test_dynamic_sampling_keeps_groups_that_say_something() -> None:
    feedback = Feedback(torch.tensor([0.0, 1.0, 1.0, 1.0, float("nan")]).double(), torch.tensor([0, 0, 1, 1, 0]))
    method = dapo()
    assert method.keep is not None
    assert method.keep(feedback).tolist() == [True, True, False, False, False]


def test_the_overlong_penalty_moves_a_tied_group_but_does_not_keep_it() -> None:
    feedback = Feedback(torch.ones(2).double(), torch.tensor([0, 0]), lengths=torch.tensor([10, 4]))
    method = dapo(max_length=10, buffer=2)
    assert method.signal(feedback)[0] < 0 < method.signal(feedback)[1]
    assert method.keep is not None and not method.keep(feedback).any()


def test_the_overlong_penalty_asks_for_lengths() -> None:
    with pytest.raises(UserError, match="lengths"):
        dapo(max_length=10, buffer=2).signal(Feedback(torch.ones(2).double(), torch.tensor([0, 0])))
