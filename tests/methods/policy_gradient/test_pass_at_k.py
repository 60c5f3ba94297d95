from __future__ import annotations

import itertools

import torch

from mmalign.methods.policy_gradient.pass_at_k import pass_at_k
from mmalign.types import Feedback, Steps


def test_the_gradient_is_that_of_the_expected_best() -> None:
    """Groups of three rows of one step with four actions: the mean over all groups is the exact gradient of the expected maximum."""
    logits = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    rewards = [0.3, -1.0, 2.0, 0.7]
    groups = list(itertools.product(range(4), repeat=3))
    p = logits.softmax(0)
    wanted = torch.autograd.grad(sum(p[list(group)].prod() * max(rewards[a] for a in group) for group in groups), logits)[0]
    method, mask, total = pass_at_k(), torch.ones(3, 1, dtype=torch.bool), torch.zeros((), dtype=torch.float64)
    now = logits.log_softmax(0)
    for group in groups:
        table = torch.stack([now[a] for a in group])[:, None]
        feedback = Feedback(torch.tensor([rewards[a] for a in group]).double(), torch.zeros(3, dtype=torch.int64))
        values = method.loss(Steps(table, mask, table.detach()), method.signal(feedback)).values
        total = total + table.detach().sum().exp() * 3 * (method.weigh(mask) * values).sum()
    torch.testing.assert_close(torch.autograd.grad(-total, logits)[0], wanted)


def test_two_rows_that_share_the_best_reward_earn_nothing() -> None:
    feedback = Feedback(torch.tensor([2.0, 2.0, 1.0, 3.0, 1.0]).double(), torch.tensor([0, 0, 0, 1, 1]))
    assert pass_at_k().signal(feedback)[:, 0].tolist() == [0, 0, 0, 2, 0]
