from __future__ import annotations

import torch

from mmalign.methods.policy_gradient.remax import remax
from mmalign.types import Feedback


def test_the_row_without_decisions_is_the_baseline() -> None:
    mask = torch.tensor([[True, True], [False, False], [True, False], [True, True]])
    said = Feedback(torch.tensor([1.0, 3.0, 7.0, 5.0]).double(), torch.tensor([0, 0, 0, 1]), tables={"mask": mask})
    method = remax()
    assert method.signal(said).tolist() == [[-2, -2], [0, 0], [4, 0], [0, 0]]
    assert method.keep is not None and method.keep(said).tolist() == [True, False, True, False]
