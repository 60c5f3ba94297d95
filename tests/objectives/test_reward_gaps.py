from __future__ import annotations

import pytest
import torch

from mmalign.methods.games.rebel import rebel
from mmalign.methods.policy_gradient.p3o import p3o
from mmalign.types import Feedback, Steps, UserError

MASK = torch.ones(4, 2, dtype=torch.bool)
GROUP = torch.tensor([0, 0, 1, 1])


def feedback_of(rewards: list[float]) -> Feedback:
    return Feedback(torch.tensor(rewards).double(), GROUP, pairs=torch.tensor([[0, 1], [3, 2]]))


@pytest.mark.parametrize("form", ["separate", "joint"])
def test_on_policy_a_comparison_s_gradient_is_half_the_gap_each_way(form) -> None:
    log_probs = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    method = p3o(form=form)
    loss = method.loss(Steps(log_probs, MASK, log_probs.detach()), method.signal(feedback_of([1.0, 3.0, 7.0, 2.0])))
    (method.weigh(MASK) * loss.values).sum().backward()
    # the mean over two pairs of -1/2 d grad(log pi_1 - log pi_2)
    torch.testing.assert_close(log_probs.grad, torch.tensor([1.0, -1.0, -2.5, 2.5]).double()[:, None].expand(4, 2) / 2)


@pytest.mark.parametrize("form", ["separate", "joint"])
@pytest.mark.parametrize("largest, limited", [(10.0, 0.85), (1.1, 1 / 1.1)])
def test_off_policy_a_pair_weighs_as_often_as_the_new_policy_would_draw_it(form, largest, limited) -> None:
    """Ratios of 1 and .85: nothing is clipped, and the gradient is rho_1 rho_2 d grad(log pi_1 - log pi_2) / 2, however it is written."""
    old = torch.full((2, 1), -1.0).double()
    log_probs = (old + torch.tensor([[1.0], [0.85]]).double().log()).requires_grad_()
    method, mask = p3o(form=form, largest=largest), torch.ones(2, 1, dtype=torch.bool)
    feedback = Feedback(torch.tensor([3.0, 1.0]).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
    loss = method.loss(Steps(log_probs, mask, old), method.signal(feedback))
    (method.weigh(mask) * loss.values).sum().backward()
    second = 0.85 if form == "separate" else limited  # of its own ratio, which has the gradient, nothing is cut off
    torch.testing.assert_close(log_probs.grad, torch.tensor([[-limited], [second]]).double())


def test_a_perfect_fit_is_the_old_policy_times_exp_of_eta_r() -> None:
    rewards, old = [1.0, 3.0, 7.0, 2.0], torch.full((4, 2), -1.0).double()
    tilted = old + 0.5 * torch.tensor(rewards).double()[:, None] / 2 - 0.3
    method = rebel(eta=0.5)
    assert method.loss(Steps(tilted, MASK, old), method.signal(feedback_of(rewards))).values.abs().max() < 1e-20


def test_a_tie_is_known_and_a_missing_reward_is_not() -> None:
    signal = rebel().signal(feedback_of([2.0, 2.0, float("nan"), 1.0]))[:, 0]
    assert signal.tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]


def test_a_torn_pair_is_refused() -> None:
    method = rebel()
    steps = Steps(torch.zeros(4, 2).double(), MASK, torch.zeros(4, 2).double())
    with pytest.raises(UserError, match="side by side"):
        method.loss(steps[[0, 2, 1, 3]], method.signal(feedback_of([1.0, 3.0, 7.0, 2.0]))[[0, 2, 1, 3]])
    with pytest.raises(UserError, match="more than one pair"):
        method.signal(Feedback(torch.zeros(4).double(), GROUP, pairs=torch.tensor([[0, 1], [1, 2]])))
    with pytest.raises(UserError, match="takes pairs"):
        method.signal(Feedback(torch.zeros(4).double(), GROUP))


def test_a_limit_of_p3o_below_one_is_refused_before_a_run() -> None:
    with pytest.raises(UserError, match=r"largest: got 0\.5, takes 1 or more"):
        p3o(largest=0.5)
