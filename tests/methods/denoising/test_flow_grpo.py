from __future__ import annotations

import pytest
import torch

from mmalign.methods.denoising.flow_grpo import flow_grpo
from mmalign.types import Feedback, Steps


@pytest.mark.parametrize(("nats", "clipped"), [(6.5, 0.0), (6.6, 1.0)])
def test_the_default_clip_is_six_and_a_half_nats_at_sd35_size(nats: float, clipped: float) -> None:
    steps = Steps(torch.full((1, 1), nats).double(), torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1).double(), event_size=65536)
    metrics = flow_grpo().loss(steps, torch.ones(1, 1).double()).metrics
    assert metrics["clip_fraction"] == clipped


def test_advantages_divide_by_the_spread_of_the_whole_batch_and_are_limited() -> None:
    rewards = torch.zeros(100, dtype=torch.float64)
    rewards[0], group = 100.0, torch.arange(100) // 50
    signal = flow_grpo().signal(Feedback(rewards, group))
    assert signal[0, 0] == 5 and not signal[50:].any()
    free = flow_grpo(advantage_clip=None, eps=0.0).signal(Feedback(rewards, group))
    torch.testing.assert_close(free[0, 0], 98 / rewards.std(unbiased=False))
