from __future__ import annotations

import torch

from mmalign.methods.denoising.dance_grpo import dance_grpo
from mmalign.types import Feedback


def test_the_best_and_the_worst_of_each_group_are_kept_with_the_advantages_of_all() -> None:
    rewards = torch.tensor([3.0, 1.0, 2.0, torch.nan, 5.0, 4.0, 0.5, 0.5, 0.5, 0.5]).double()
    feedback = Feedback(rewards, torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1]))
    method = dance_grpo(best_of=2)
    assert method.keep is not None and method.keep(feedback).tolist() == [False, True, False, False, True, False, True, False, False, True]
    torch.testing.assert_close(method.signal(feedback), dance_grpo().signal(feedback))
    assert dance_grpo().keep is None
