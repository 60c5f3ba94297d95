from __future__ import annotations

import pytest
import torch

from mmalign.methods import dpo, lcpo, power_dl
from mmalign.types import Feedback, Steps, UserError


def table(gaps):
    """Pairs whose first row is ahead by so many nats."""
    rows = torch.tensor([value for gap in gaps for value in (gap, 0.0)], dtype=torch.float64)[:, None].requires_grad_()
    steps = Steps(rows, torch.ones_like(rows, dtype=torch.bool), refs={"ref": torch.zeros_like(rows)})
    count = len(rows)
    nothing = torch.full((count,), torch.nan, dtype=torch.float64)
    return steps, Feedback(nothing, torch.arange(count) // 2, pairs=torch.arange(count).view(-1, 2))


def updated(method, steps, said):
    return method.survey(steps.each(torch.Tensor.detach), method.signal(said))


def test_reliability_is_the_mean_posterior_one_update_later():
    method = lcpo(beta=1.0, reliability=0.8, momentum=0.25)
    steps, said = table([1.0, -2.0])
    signal = updated(method, steps, said)
    assert signal[:, 0, -1].tolist() == [0.8] * 4  # used as it was
    q = torch.sigmoid(torch.tensor([1.0, -2.0], dtype=torch.float64))
    right = (q * 0.8 / (q * 0.8 + (1 - q) * 0.2)).mean().item()
    assert method.state.dump()["mean"] == pytest.approx(0.75 * 0.8 + 0.25 * right)
    assert updated(method, steps, said)[0, 0, -1].item() == pytest.approx(0.75 * 0.8 + 0.25 * right)


def test_reliability_is_in_the_checkpoint():
    steps, said = table([1.0, -2.0])
    first, second = lcpo(), lcpo()
    updated(first, steps, said)
    second.state.load(first.state.dump())
    assert torch.equal(updated(first, steps, said), updated(second, steps, said))
    assert not torch.equal(updated(lcpo(), steps, said), updated(second, steps, said))


def test_a_label_that_the_policy_is_sure_is_wrong_hardly_teaches():
    """DPO's gradient is steepest there."""
    steps, said = table([-8.0])
    for method, wanted in ((lcpo(beta=1.0, reliability=0.6), 0.0), (dpo(beta=1.0), -2.0)):
        steps.log_probs.grad = None
        signal = method.signal(said) if method.survey is None else updated(method, steps, said)
        method.loss(steps, signal).values.sum().backward()
        assert steps.log_probs.grad[0, 0].item() == pytest.approx(wanted, abs=1e-3)


def test_reliability_is_learnt():
    """A policy that is right about everything, and labels of which a fifth is wrong."""
    steps, said = table([6.0] * 8 + [-6.0] * 2)
    method = lcpo(beta=1.0, reliability=0.55, momentum=0.3)
    for _ in range(60):
        updated(method, steps, said)
    assert method.state.dump()["mean"] == pytest.approx(0.8, abs=0.01)


def test_dynamic_labels_stop_teaching_where_the_policy_is_sure():
    """At gamma = 1 the label is the policy's own, and its gradient is 0."""
    steps, said = table([3.0])
    method = power_dl(gamma=1.0, eta=0.0)
    method.loss(steps, method.signal(said)).values.sum().backward()
    assert steps.log_probs.grad.abs().max() < 1e-12


def test_mistakes():
    for wrong, match in (
        ({"reliability": 0.4}, "reliability: got 0.4"), ({"momentum": 0.0}, "momentum: got 0"), ({"base": "kto"}, "takes one of dpo"),
        ({"gamma": 1.0}, "no gap"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            lcpo(**wrong)
    with pytest.raises(UserError, match="gamma: got 2"):
        power_dl(gamma=2.0)
