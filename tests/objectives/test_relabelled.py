from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from mmalign.methods import dpo, lcpo, power_dl
from mmalign.objectives.terms.relabelled import weighted_entropy
from mmalign.types import Feedback, Steps, UserError


def table(gaps):
    """Pairs whose first row is ahead by so many nats."""
    rows = torch.tensor([value for gap in gaps for value in (gap, 0.0)], dtype=torch.float64)[:, None].requires_grad_()
    steps = Steps(rows, torch.ones_like(rows, dtype=torch.bool), refs={"ref": torch.zeros_like(rows)})
    count = len(rows)
    nothing = torch.full((count,), torch.nan, dtype=torch.float64)
    return steps, Feedback(nothing, torch.arange(count) // 2, pairs=torch.arange(count).view(-1, 2))


def updated(method, steps, feedback):
    return method.survey(steps.each(torch.Tensor.detach), method.signal(feedback))


def test_reliability_is_the_mean_posterior_one_update_later():
    method = lcpo(beta=1.0, reliability=0.8, momentum=0.25)
    steps, feedback = table([1.0, -2.0])
    signal = updated(method, steps, feedback)
    assert signal[:, 0, -1].tolist() == [0.8] * 4  # used as it was
    q = torch.sigmoid(torch.tensor([1.0, -2.0], dtype=torch.float64))
    right = (q * 0.8 / (q * 0.8 + (1 - q) * 0.2)).mean().item()
    assert method.state.dump()["values"][0] == pytest.approx(0.75 * 0.8 + 0.25 * right)
    assert updated(method, steps, feedback)[0, 0, -1].item() == pytest.approx(0.75 * 0.8 + 0.25 * right)


def test_reliability_is_in_the_checkpoint():
    steps, feedback = table([1.0, -2.0])
    first, second = lcpo(), lcpo()
    updated(first, steps, feedback)
    second.state.load(first.state.dump())
    assert torch.equal(updated(first, steps, feedback), updated(second, steps, feedback))
    assert not torch.equal(updated(lcpo(), steps, feedback), updated(second, steps, feedback))


def test_a_label_that_the_policy_is_sure_is_wrong_hardly_teaches():
    """DPO's gradient is steepest there."""
    steps, feedback = table([-8.0])
    for method, wanted in ((lcpo(beta=1.0, reliability=0.6), 0.0), (dpo(beta=1.0), -2.0)):
        steps.log_probs.grad = None
        signal = method.signal(feedback) if method.survey is None else updated(method, steps, feedback)
        method.loss(steps, signal).values.sum().backward()
        assert steps.log_probs.grad[0, 0].item() == pytest.approx(wanted, abs=1e-3)


def test_reliability_is_learnt():
    """A policy that is right about everything, and labels of which a fifth is wrong."""
    steps, feedback = table([6.0] * 8 + [-6.0] * 2)
    method = lcpo(beta=1.0, reliability=0.55, momentum=0.3)
    for _ in range(60):
        updated(method, steps, feedback)
    assert method.state.dump()["values"][0] == pytest.approx(0.8, abs=0.01)


def test_every_annotator_has_a_reliability_of_its_own():
    """One is right about everything, one about nothing, and nobody knows who gave the last label."""
    steps, feedback = table([6.0, -6.0, 6.0, 0.0])
    feedback = replace(feedback, annotators=["ann", "ann", "bob", "bob", "ann", "ann", "", ""])
    method = lcpo(beta=1.0, reliability=0.6, momentum=0.5)
    first = updated(method, steps, feedback)
    assert first[:, 0, -1].tolist() == [0.6] * 8 and method.state.dump()["names"] == ["ann", "bob", ""]
    again = updated(method, steps, feedback)
    right, wrong = (1 / (1 + math.exp(-gap - math.log(1.5))) for gap in (6.0, -6.0))
    wanted = [0.3 + right / 2, 0.3 + wrong / 2, 0.3 + right / 2, 0.6]
    assert again[0::2, 0, -1].tolist() == pytest.approx(wanted) and again[1::2, 0, -1].tolist() == pytest.approx(wanted)
    other = lcpo(beta=1.0, reliability=0.9, momentum=0.5)
    other.state.load(json.loads(json.dumps(method.state.dump())))
    assert torch.equal(updated(other, steps, feedback), updated(method, steps, feedback))


def test_dynamic_labels_of_named_records_move_on_from_visit_to_visit():
    """``q <- (1 - gamma) q + gamma sigmoid(z)``, from the strength on; without an id every visit is the first."""
    steps, feedback = table([2.0, -1.0, 0.5])
    feedback = replace(feedback, strength=torch.tensor([1.0, 0.4, 0.9], dtype=torch.float64), ids=["a", "a", "b", "b", "", ""])
    method = power_dl(beta=1.0, eta=0.0, gamma=0.25)
    label = lambda: (signal := method.signal(feedback)[0::2, 0, 0]) + (signal < 0)  # noqa: E731 (of the first row)
    assert label().tolist() == pytest.approx([1.0, 0.4, 0.9])
    q = torch.tensor([1.0, 0.4, 0.9], dtype=torch.float64)
    own = torch.sigmoid(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    for _ in range(3):
        updated(method, steps, feedback)
        q = torch.where(torch.tensor([True, True, False]), 0.75 * q + 0.25 * own, q)
        assert label().tolist() == pytest.approx(q.tolist())
    other = power_dl(beta=1.0, eta=0.0, gamma=0.25)
    other.state.load(json.loads(json.dumps(method.state.dump())))
    assert torch.equal(other.signal(feedback), method.signal(feedback))


def test_a_label_that_nobody_knows_stays_unknown():
    steps, feedback = table([2.0])
    method = power_dl()
    updated(method, steps, replace(feedback, ids=["a", "a"]))
    unknown = replace(feedback, ids=["a", "a"], strength=torch.tensor([math.nan], dtype=torch.float64))
    assert not method.signal(unknown)[..., 0].any()


def test_dynamic_labels_stop_teaching_where_the_policy_is_sure():
    """At gamma = 1 the label is the policy's own, and its gradient is 0."""
    steps, feedback = table([3.0])
    method = power_dl(gamma=1.0, eta=0.0)
    method.loss(steps, method.signal(feedback)).values.sum().backward()
    assert steps.log_probs.grad.abs().max() < 1e-12


def test_the_rewards_are_those_that_the_policy_is_best_for():
    """Five answers of 1 to 5 steps: no policy has more of ``E[r] + beta H_w`` than the one that r is read off; and its value by hand."""
    draw, beta = torch.Generator().manual_seed(0), 0.7
    lengths = torch.arange(1, 6)
    weight = 1 / lengths.double()
    log_pi = torch.randn(5, generator=draw, dtype=torch.float64).log_softmax(0)
    mask = torch.arange(5) < lengths[:, None]
    split = torch.rand(5, 5, generator=draw, dtype=torch.float64) * mask  # an answer's log-probability, over its steps
    steps = Steps(log_pi[:, None] * split / split.sum(1, keepdim=True), mask)
    rewards = beta * weighted_entropy().of(steps).squeeze(1)

    def value(log_policy):
        return (log_policy.exp() * (rewards - beta * weight * log_policy)).sum(-1)

    best = value(log_pi)
    others = (log_pi + 0.3 * torch.randn(200, 5, generator=draw, dtype=torch.float64)).log_softmax(-1)
    assert bool((value(others) < best).all())
    data = torch.rand(5, generator=draw, dtype=torch.float64)
    data = data / data.sum()  # the better rows'
    by_hand = beta * ((log_pi.exp() * weight).sum() - (data * weight * log_pi).sum() - (data * weight).sum())
    assert (best - (data * rewards).sum()).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize("gamma, sparse", [(0.1, False), (0.0, True)])
def test_dynamic_labels_let_covered_pairs_be_learnt_and_leave_the_others_as_they_were(gamma, sparse):
    """The first pair is seen 200 times as much as the second; with labels that stay, both are learnt in the end."""
    method, coverage = power_dl(beta=1.0, eta=0.0, gamma=gamma), torch.tensor([4.0, 0.02], dtype=torch.float64)
    steps, feedback = table([0.0, 0.0])
    feedback, leaf = replace(feedback, ids=["a", "a", "b", "b"]), steps.log_probs
    for _ in range(200):
        leaf.grad = None
        method.loss(steps, updated(method, steps, feedback)).values.sum().backward()
        with torch.no_grad():
            leaf -= coverage.repeat_interleave(2)[:, None] * leaf.grad
    sure = torch.sigmoid(leaf[0::2, 0] - leaf[1::2, 0])
    assert sure[0] > 0.85 and bool(sure[1] > 0.85) is sparse and bool(sure[1] < 0.6) is not sparse


def test_mistakes():
    for wrong, match in (
        ({"reliability": 0.4}, "reliability: got 0.4"),
        ({"momentum": 0.0}, "momentum: got 0"),
        ({"base": "kto"}, "base: got 'kto'"),
        ({"gamma": 1.0}, "no gap"),
    ):
        with pytest.raises(UserError, match=match):
            lcpo(**wrong)
    with pytest.raises(UserError, match="gamma: got 2"):
        power_dl(gamma=2.0)
