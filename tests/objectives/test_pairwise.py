from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmalign.methods import dpo
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import Reading, Survey
from mmalign.objectives.sentences import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Feedback, Steps, UserError


def feedback(pairs, strength=None, rows=4):
    nothing = torch.full((rows,), math.nan, dtype=torch.float64)
    strength = None if strength is None else torch.tensor(strength, dtype=torch.float64)
    return Feedback(nothing, torch.arange(rows) // 2, pairs=torch.tensor(pairs), strength=strength)


def steps(first, rows=4):
    log_probs = torch.tensor(first, dtype=torch.float64)[:, None].requires_grad_()
    return Steps(log_probs, torch.ones(rows, 1, dtype=torch.bool), refs={"ref": torch.zeros(rows, 1).double()})


def test_the_signal_says_who_is_better_and_how_surely():
    signal = dpo().signal(feedback([[0, 1], [3, 2]], [0.9, 0.2]))
    assert signal.squeeze(1).tolist() == pytest.approx([0.9, -0.9, 0.8, -0.8])  # .2 for row 3 is .8 for row 2
    assert dpo().signal(feedback([[1, 0]])).squeeze(1).tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_missing_labels_teach_nothing_and_ties_pull_the_margin_to_zero():
    table, method = steps([2.0, 1.0, 2.0, 1.0]), dpo(beta=1.0)
    some = feedback([[0, 1], [2, 3]], [0.5, math.nan])
    assert method.keep(some).tolist() == [True, True, False, False]
    (method.loss(table, method.signal(some)).values * 0.5).sum().backward()
    assert table.log_probs.grad[0] > 0 > table.log_probs.grad[1] and not table.log_probs.grad[2:].any()
    level = steps([1.0, 1.0, 0.0, 0.0])
    method.loss(level, method.signal(some)).values.sum().backward()
    assert not level.log_probs.grad.any()


def test_metrics_by_hand():
    method = dpo()
    metrics = method.loss(steps([2.0, 1.0, 5.0, 1.0]), method.signal(feedback([[0, 1], [3, 2]]))).metrics
    ranked = {"margin": -1.5, "accuracy": 0.5, "better": 1.5, "worse": 3.0}
    assumed = {"violation": 0.5, "violation_nats": 2.0, "reference_violation": 0.0, "reference_violation_nats": 0.0}  # 1 against 5: 4 nats
    assert {name: value.item() for name, value in metrics.items()} == ranked | assumed
    assert method.loss(steps([1.0] * 4), method.signal(feedback([[0, 1], [3, 2]]))).metrics["accuracy"] == 0.5


def test_torn_pairs_are_refused():
    method = dpo()
    signal = method.signal(feedback([[0, 1], [2, 3]]))
    with pytest.raises(UserError, match="side by side"):
        method.loss(steps([0.0] * 4)[[0, 2, 1, 3]], signal[[0, 2, 1, 3]])
    with pytest.raises(UserError, match="whole pairs"):
        method.loss(steps([0.0] * 4)[:3], signal[:3])
    with pytest.raises(UserError, match="whole pairs"):
        method.loss(steps([0.0] * 4), signal[:2])


def test_feedback_that_is_none():
    with pytest.raises(UserError, match="takes pairs"):
        dpo().signal(Feedback(torch.zeros(4).double(), torch.arange(4)))
    with pytest.raises(UserError, match="at most once"):
        dpo().signal(feedback([[0, 1], [1, 2]]))
    with pytest.raises(UserError, match=r"0\.\.1"):
        dpo().signal(feedback([[0, 1]], [1.2]))
    with pytest.raises(UserError, match=r"smoothing: got 0\.5"):
        dpo(smoothing=0.5)


def pieces(**settings):
    """A method that is told one number of each row, and finds one more."""
    term = compared(scores.ratio(), links.ahead(links.named("logistic", beta=1.0)))
    find = lambda steps, order: torch.full((len(steps), 1), 7.0).double()  # noqa: E731
    return pairwise.pairwise(replace(term, extras=Reading(lambda feedback: feedback.rewards[:, None]), survey=Survey(find), **settings))


def test_further_channels_stand_beside_the_label():
    scored = replace(feedback([[0, 1], [3, 2]], [0.9, 0.2]), rewards=torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    assert pieces().signal(scored)[:, 0].tolist() == [
        pytest.approx([0.9, 1.0]), pytest.approx([-0.9, 2.0]), pytest.approx([0.8, 3.0]), pytest.approx([-0.8, 4.0])
    ]  # fmt: skip
    surveyed = pieces().survey(steps([0.0] * 4), pieces().signal(scored))
    assert torch.equal(surveyed[..., :2], pieces().signal(scored)) and bool((surveyed[..., 2] == 7).all())
    with pytest.raises(UserError, match="no survey"):
        pieces().loss(steps([0.0] * 4), pieces().signal(scored))


def test_a_pair_of_which_something_is_missing_says_nothing():
    scored = replace(feedback([[0, 1], [3, 2]]), rewards=torch.tensor([1.0, math.nan, 3.0, 4.0]).double())
    signal = pieces().signal(scored)
    assert not signal[:2].any() and signal[2:, 0, 0].tolist() == [-1.0, 1.0]
    assert pieces().keep(scored).tolist() == [False, False, True, True]


def test_hard_labels_know_who_is_better_and_no_ties():
    scored = replace(feedback([[0, 1], [3, 2]], [0.9, 0.5]), rewards=torch.zeros(4).double())
    assert pieces(labels=comparisons.hard).signal(scored)[:, 0, 0].tolist() == [1.0, -1.0, 0.0, 0.0]


def test_a_turned_order_is_the_other_one():
    order, _ = pairwise.ordered(steps([0.0] * 4), torch.tensor([[0.9], [-0.9], [-0.8], [0.8]]).double())
    rows = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert [side.flatten().tolist() for side in order.sides(rows)] == [[1.0, 4.0], [2.0, 3.0]]
    assert [side.flatten().tolist() for side in order.turned().sides(rows)] == [[2.0, 3.0], [1.0, 4.0]]
    assert order.turned().strength.flatten().tolist() == pytest.approx([0.1, 0.2])
