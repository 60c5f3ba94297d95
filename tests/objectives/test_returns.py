from __future__ import annotations

import pytest
import torch

from mmalign import needs
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import read
from mmalign.types import Feedback, UserError

MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
REWARDS = torch.tensor([[1.0, 2.0, 9.0, 4.0], [3.0, 9.0, 9.0, 9.0], [9.0] * 4], dtype=torch.float64)


def test_no_time_passes_in_dead_cells() -> None:
    later = returns.to_go(REWARDS, MASK, gamma=0.5)
    assert later.tolist() == [[1 + 1 + 1, 2 + 2, 0, 4], [3, 0, 0, 0], [0] * 4]


def test_gae_is_between_one_step_and_the_whole_return() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = returns.gae(REWARDS, values, MASK, gamma=0.9, lam=1.0)
    torch.testing.assert_close(whole, torch.where(MASK, returns.to_go(REWARDS, MASK, gamma=0.9) - values, 0.0))
    step = returns.gae(REWARDS, values, MASK, gamma=0.9, lam=0.0)
    torch.testing.assert_close(step[0, 1], 2 + 0.9 * values[0, 3] - values[0, 1])
    torch.testing.assert_close(step[0, 3], 4 - values[0, 3])
    with pytest.raises(UserError, match="lam"):
        returns.gae(REWARDS, values, MASK, gamma=0.9, lam=1.1)


def test_a_reward_arrives_at_the_last_live_step() -> None:
    assert returns.at_end(torch.tensor([5.0, float("nan"), 7.0]).double(), MASK).tolist() == [[0, 0, 0, 5], [0] * 4, [0] * 4]


def test_whitening_sees_live_cells_alone() -> None:
    white = returns.whitened(REWARDS, MASK)
    torch.testing.assert_close(white[MASK], (REWARDS[MASK] - REWARDS[MASK].mean()) / (REWARDS[MASK].var() + 1e-8).sqrt())
    assert not white[~MASK].any()


def test_macro_actions_count_live_steps() -> None:
    number = returns.macro(MASK, length=2)
    assert number.tolist() == [[1, 1, 0, 2], [1, 0, 0, 0], [0] * 4]
    assert returns.first(number).tolist() == [[True, False, False, True], [True, False, False, False], [False] * 4]
    assert returns.pooled(REWARDS, number, mean=True).tolist() == [[1.5, 1.5, 0, 4], [3, 0, 0, 0], [0] * 4]
    assert returns.pooled(REWARDS, number, mean=False)[0].tolist() == [3, 3, 0, 4]


def test_a_table_that_was_not_given_is_named() -> None:
    with pytest.raises(UserError, match="reads value"):
        read(Feedback(torch.zeros(1).double(), torch.zeros(1, dtype=torch.int64)), needs.VALUE)


def test_the_optimal_baseline_makes_the_gradient_s_variance_least() -> None:
    """One step of a policy over three words: the variance of (r - b) times the score in logits, for b around the one that is found."""
    logits, rewards = torch.tensor([0.3, -0.5, 1.1]).double(), torch.tensor([2.0, -1.0, 0.5]).double()
    p = logits.softmax(0)
    scores = torch.eye(3, dtype=torch.float64) - p

    def variance(baseline: float) -> float:
        terms = (rewards - baseline)[:, None] * scores
        mean = (p[:, None] * terms).sum(0)
        return float((p[:, None] * (terms - mean) ** 2).sum())

    count = torch.tensor([20, 9, 44])  # a sample in which words are about as frequent as they are likely
    words = torch.arange(3).repeat_interleave(count)
    exact = float((p * (scores**2).sum(1) * rewards).sum() / (p * (scores**2).sum(1)).sum())
    assert variance(exact) < min(variance(exact - 0.1), variance(exact + 0.1))
    tables = {
        needs.MASK: torch.ones(len(words), 1, dtype=torch.bool),
        needs.OLD: p.log()[words][:, None],
        needs.COLLISION: (p**2).sum().log().expand(len(words), 1),
    }
    feedback = Feedback(rewards[words], torch.zeros(len(words), dtype=torch.int64), tables=tables)
    frequency = count / count.sum()
    wanted = float((frequency * (scores**2).sum(1) * rewards).sum() / (frequency * (scores**2).sum(1)).sum())
    torch.testing.assert_close(returns.optimal_baseline(rewards[words][:, None], feedback), torch.full((len(words), 1), wanted).double())
