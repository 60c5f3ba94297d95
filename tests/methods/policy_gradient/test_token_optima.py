"""Where newer methods for tokens lead, by enumeration: a choice of a few words, with every outcome and its probability."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import MASK, OLD, refs
from mmalign.types import Feedback, Method, Steps

LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
TEACHER = torch.tensor([-0.5, 0.4, 0.2, 1.0], dtype=torch.float64)


def _expected(method: Method, logits: Tensor, feedback: Feedback, log_probs: Tensor, chance: Tensor) -> Tensor:
    """The mean loss of rows of one step ``[B]``, by the chance of each."""
    steps = Steps(log_probs[:, None], torch.ones(len(log_probs), 1, dtype=torch.bool), old=log_probs.detach()[:, None])
    return (chance.detach()[:, None] * method.loss(steps, method.signal(feedback)).values).sum()


def test_opd_has_the_gradient_of_the_reverse_kl() -> None:
    logits = LOGITS.clone().requires_grad_()
    own, teacher = logits.log_softmax(-1), TEACHER.log_softmax(-1)
    tables = {MASK: torch.ones(4, 1, dtype=torch.bool), OLD: own.detach()[:, None], refs("teacher"): teacher[:, None]}
    feedback = Feedback(torch.zeros(4).double(), torch.zeros(4, dtype=torch.int64), tables=tables)
    (got,) = torch.autograd.grad(_expected(mm.methods.opd(), logits, feedback, own, own.exp()), logits)
    other = LOGITS.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((other.softmax(-1) * (other.log_softmax(-1) - teacher)).sum(), other)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("rows", "p"), [(2, 0.3), (4, 0.1), (5, 0.6)])
def test_maxrl_has_the_gradient_of_the_log_chance_of_success_but_for_its_tail(rows: int, p: float) -> None:
    logit = torch.tensor(p, dtype=torch.float64).logit().requires_grad_()
    method, total = mm.methods.maxrl(eps=0.0), torch.zeros((), dtype=torch.float64)
    for outcome in product((0.0, 1.0), repeat=rows):
        rewards = torch.tensor(outcome, dtype=torch.float64)
        log_probs = torch.where(rewards > 0, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
        feedback = Feedback(rewards, torch.zeros(rows, dtype=torch.int64))
        chance = log_probs.sum().exp().expand(rows) / rows
        total = total + _expected(method, logit, feedback, log_probs, chance)
    (got,) = torch.autograd.grad(total, logit)
    series = sum((1 - p) ** (k - 1) for k in range(1, rows))  # d/dp of the first rows - 1 terms of log p
    torch.testing.assert_close(got, torch.tensor(-series * p * (1 - p), dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("start", "better"), [(0.02, True), (0.5, True), (0.5, False), (0.9, False)])
def test_drpo_moves_a_probability_by_delta_and_no_further(start: float, better: bool) -> None:
    method, delta = mm.methods.drpo(delta=0.08), 0.08
    old = torch.tensor([[start], [1.0]], dtype=torch.float64).log()
    mask, sign = torch.tensor([[True], [True]]), 1.0 if better else -1.0
    feedback = Feedback(torch.tensor([sign, -sign]).double(), torch.zeros(2, dtype=torch.int64))
    now = torch.tensor(start + sign * delta, dtype=torch.float64).log().requires_grad_()
    for off, wanted in ((0.0, 0.0), (0.01, 1.0), (-0.01, -1.0)):
        moved = torch.stack([(now.exp() + off).log(), torch.zeros((), dtype=torch.float64)])[:, None]
        (slope,) = torch.autograd.grad(method.loss(Steps(moved, mask, old=old), method.signal(feedback)).values[0].sum(), now)
        assert float(slope.sign()) == wanted if wanted else abs(float(slope)) < 1e-12
