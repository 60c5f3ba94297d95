from __future__ import annotations

import itertools

import torch

from mmalign.methods.policy_gradient.clip_cov import clip_cov
from mmalign.objectives.terms import gates
from tests.oracles.tables import table


def test_the_expected_loss_is_the_mean_over_all_draws() -> None:
    at = table("token")
    settings = {"share": 0.05, "low": 0.0, "high": 9.0, "clip": 0.9}
    method = clip_cov(**settings)
    signal = method.survey(at.steps(), method.signal(at.feedback()))  # type: ignore[misc]
    candidates = torch.nonzero((signal[..., 1] < 1) & at.mask)
    count = int(0.05 * int(at.mask.sum()))
    assert len(candidates) > count > 0
    losses = []
    for draw in itertools.combinations(range(len(candidates)), count):
        drawn = torch.ones_like(signal)
        drawn[..., 0] = signal[..., 0]
        for place in draw:
            row, step = candidates[place].tolist()
            drawn[row, step, 1] = 0.0
        losses.append((method.weigh(at.mask) * method.loss(at.steps(), drawn).values).sum())
    expected = (method.weigh(at.mask) * method.loss(at.steps(), signal).values).sum()
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


def test_covariances_add_up_to_the_covariance() -> None:
    at = table("token")
    advantage = torch.randn(at.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    both = torch.stack([advantage[at.mask], at.log_probs.detach()[at.mask]])
    torch.testing.assert_close(gates.covariance(at.steps(), advantage)[at.mask].mean(), torch.cov(both, correction=0)[0, 1])
