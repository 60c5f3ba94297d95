from __future__ import annotations

import itertools

import torch

from mmalign.methods.policy_gradient.rloo import rloo
from mmalign.types import Feedback, Steps


def test_on_policy_gradient_is_reinforce() -> None:
    """-A_i times the sum of a row's score functions, averaged over rows; rows differ in length."""
    log_probs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    method, feedback = rloo(), Feedback(torch.tensor([1.0, 2.0, 6.0]).double(), torch.zeros(3, dtype=torch.int64))
    values = method.loss(Steps(log_probs, mask, log_probs.detach().clone()), method.signal(feedback)).values
    (method.weigh(mask) * values).sum().backward()
    wanted = torch.where(mask, torch.tensor([[3.0], [1.5], [-4.5]]).double() / 3, 0.0)
    torch.testing.assert_close(log_probs.grad, wanted)


def test_off_policy_gradient_is_that_of_the_expected_reward() -> None:
    """Two steps of two actions: the mean over all pairs of rows under the old policy is the exact gradient of the new one."""
    rng = torch.Generator().manual_seed(3)
    logits, past = torch.randn(2, 2, generator=rng).double().requires_grad_(), torch.randn(2, 2, generator=rng).double()
    now, old = logits.log_softmax(-1), past.log_softmax(-1)
    rows = list(itertools.product((0, 1), repeat=2))
    reward = dict(zip(rows, (0.3, -1.0, 2.0, 0.7), strict=True))
    wanted = torch.autograd.grad(sum((now[0, a] + now[1, b]).exp() * reward[a, b] for a, b in rows), logits, retain_graph=True)[0]

    total = torch.zeros((), dtype=torch.float64)
    method, mask = rloo(), torch.ones(2, 2, dtype=torch.bool)
    for pair in itertools.product(rows, repeat=2):
        table = torch.stack([torch.stack([now[0, a], now[1, b]]) for a, b in pair])
        past_table = torch.stack([torch.stack([old[0, a], old[1, b]]) for a, b in pair])
        feedback = Feedback(torch.tensor([reward[row] for row in pair]).double(), torch.tensor([0, 0]))
        values = method.loss(Steps(table, mask, past_table), method.signal(feedback)).values
        total = total + past_table.sum().exp() * (method.weigh(mask) * values).sum()
    torch.testing.assert_close(torch.autograd.grad(-total, logits)[0], wanted)
