"""Betas that follow margins: what they are after several updates, and that they come back from a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.types import Feedback, Steps

FEEDBACK = Feedback(torch.zeros(4).double(), torch.arange(4) // 2, pairs=torch.tensor([[0, 1], [2, 3]]))


def update(method, *margins, feedback=FEEDBACK):
    """The beta of an update whose two pairs have these margins, as its survey finds it."""
    bounds = torch.tensor([[margins[0]], [0.0], [margins[1]], [0.0]]).double()
    steps = Steps(bounds, torch.ones(4, 1).bool(), refs={"ref": torch.zeros(4, 1).double()}, kind="bound")
    return float(method.survey(steps, method.signal(feedback))[0, 0, -2])


def test_a_dynamic_beta_follows_the_update_s_margin_away_from_the_usual_one():
    method = mm.methods.beta_dpo(beta=0.5, alpha=0.6, decay=0.9, kept=1.0)
    assert update(method, 1.0, 3.0) == pytest.approx(0.5)  # a mean reward of 1, which is the usual one by then
    assert update(method, 5.0, 7.0) == pytest.approx(0.5 * (1 + 0.6 * (3 - 1.2)))  # 0.9 * 1 + 0.1 * 3
    kept = method.state.dump()
    assert update(method, -300.0, -300.0) == pytest.approx(0.5 * 0.01)  # never below
    other = mm.methods.beta_dpo(beta=0.5, alpha=0.6, decay=0.9, kept=1.0)
    other.state.load(kept)
    assert update(other, 2.4, 2.4) == pytest.approx(0.5)  # 1.2, as it was


def test_a_beta_that_sets_itself_is_bounded_and_counts_margins_by_their_size():
    method = mm.methods.auto_beta_dpo(weight=0.2, decay=0.5, low=0.1, high=2.0)
    assert update(method, 0.0, 0.0) == 2.0
    assert update(method, -4.0, 4.0) == pytest.approx(math.log(4) / 2)  # half of 0 and half of 4
    assert update(method, 1000.0, 1000.0) == 0.1


def test_a_tie_has_no_margin():
    method = mm.methods.beta_dpo(beta=1.0, alpha=1.0, decay=0.5, kept=1.0)
    update(method, 1.0, 1.0)
    tied = Feedback(torch.zeros(4).double(), torch.arange(4) // 2, pairs=FEEDBACK.pairs, strength=torch.tensor([0.5, 1.0]).double())
    method.state.load({"mean": 1.0, "count": 2})
    assert update(method, 50.0, 2.0, feedback=tied) == pytest.approx(1.0)  # a mean of 1, whatever the tie's margin is


def test_pairs_whose_margins_are_the_most_extreme_are_left_out_of_the_loss_and_of_its_beta():
    method = mm.methods.beta_dpo(beta=1.0, alpha=0.5, decay=0.5, kept=0.5)
    pairs = torch.arange(8).view(4, 2)
    feedback = Feedback(torch.zeros(8).double(), torch.arange(8) // 2, pairs=pairs)
    for margins, usual, near in (([1.0, 2.0, 3.0, 10.0], 4.0, [1, 2]), ([0.0, 4.0, 2.0, 30.0], 6.5, [1, 2])):
        bounds = torch.tensor([[value] for margin in margins for value in (margin, 0.0)]).double()
        steps = Steps(bounds, torch.ones(8, 1).bool(), refs={"ref": torch.zeros(8, 1).double()}, kind="bound")
        signal = method.survey(steps, method.signal(feedback))
        beta = max(0.01, 1 + 0.5 * (sum(margins[pair] for pair in near) / 2 - usual))
        assert signal[:, 0, -2].tolist() == pytest.approx([beta] * 8)
        assert signal[0::2, 0, -1].tolist() == [2.0 if pair in near else 0.0 for pair in range(4)]
        values = method.loss(steps, signal).values.flatten()
        cost = [2 * math.log1p(math.exp(-beta * margin)) if pair in near else 0.0 for pair, margin in enumerate(margins)]
        assert values.tolist() == pytest.approx([value for value in cost for _ in range(2)])
