"""A limit on the time of any reward."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import wait

import pytest
import torch

from mmalign.rewards.composed.combined import combined
from mmalign.rewards.composed.time_limit import time_limit
from mmalign.rewards.texts.exact_match import exact_match
from mmalign.training.rollouts.feedback import ask
from mmalign.types import UserError


def test_a_reward_in_time_answers_as_it_would():
    assert time_limit(exact_match(), seconds=60)(["a", "b"], ["p"] * 2, answer=["a", "a"]).tolist() == [1, 0]
    limited = time_limit(exact_match(column="gold"))
    assert (limited.low, limited.high, limited.reads) == (0.0, 1.0, frozenset({"gold"}))
    assert limited(["a", "b"], ["p"] * 2, gold=[None, "b"]).isnan().tolist() == [True, False]
    parts = time_limit(lambda outputs, prompts: {"x": torch.tensor([1.0]), "y": torch.tensor([2.0])})
    assert {name: value.item() for name, value in parts(["a"], ["p"]).items()} == {"x": 1, "y": 2}
    assert combined(rewards={"limited": time_limit(exact_match())})(["a"], ["p"], answer=["a"]).item() == 1


def test_a_gradient_arrives_where_it_would():
    def mean(outputs, prompts):
        assert torch.is_grad_enabled() == wanted
        return outputs.mean(1)

    mean.differentiable = True
    images, wanted = torch.ones(2, 3, requires_grad=True), True
    limited = time_limit(mean)
    assert limited.differentiable
    limited(images, ["p"] * 2).sum().backward()
    assert images.grad.tolist() == [[pytest.approx(1 / 3)] * 3] * 2
    with torch.no_grad():
        wanted = False
        assert not limited(images, ["p"] * 2).requires_grad


@pytest.mark.filterwarnings("ignore:time_limit. the reward is still")
def test_a_reward_that_hangs_has_no_scores_until_it_is_done(monkeypatch):
    go_on, hanging, calls = threading.Event(), [False], []
    patient = lambda working, seconds: wait(working, seconds if hanging[0] else 300)  # noqa: E731
    monkeypatch.setattr(sys.modules["mmalign.rewards.composed.time_limit"], "wait", patient)

    def hangs(outputs, prompts):
        calls.append(len(outputs))
        if len(calls) == 2:
            go_on.wait()
        return {"x": torch.ones(len(outputs))}

    limited = time_limit(hangs, seconds=0.2)
    assert limited(["a"], ["p"])["x"].tolist() == [1]
    hanging[0] = True
    with pytest.warns(UserWarning, match=r"the reward took more than 0.2 s; these 2 scores are missing"):
        assert ask({"r": limited}, ["a", "b"], ["p"] * 2)["r/x"].isnan().all()  # by the name that it had
    with pytest.warns(UserWarning, match="still at work on a batch before"):
        limited(["a"], ["p"])
    assert calls == [1, 2], "it is not asked while it hangs"
    hanging[0] = False
    go_on.set()
    while (again := limited(["a"], ["p"])["x"]).isnan().any():  # its thread may need a moment
        time.sleep(0.01)
    assert again.tolist() == [1]


def test_what_a_reward_raises_is_raised_where_it_was_asked():
    def broken(outputs, prompts):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        time_limit(broken)(["a"], ["p"])
    with pytest.raises(UserError, match=r"reward r: raised ValueError: no such thing"):
        ask({"r": time_limit(broken)}, ["a"], ["p"])
    with pytest.raises(UserError, match=r"time_limit: got int, seconds=60\.0, takes a reward"):
        time_limit(3)
    with pytest.raises(UserError, match=r"time_limit: got function, seconds=0, takes a reward, and more than 0"):
        time_limit(broken, seconds=0)
