"""Methods of the user's: each plausible mistake is a line that names the function, and the file's line where it raised."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.config import build_part, check, load
from mmalign.types import Feedback, Method, Steps, UserError

OWN = """
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Loss, Method


def made(**others):
    parts = {"signal": lambda feedback: feedback.rewards[:, None], "weigh": weights.sequence_mean, "needs": frozenset()}
    return Method(**{**parts, "loss": lambda steps, signal: Loss(-signal * steps.log_probs, {}), **others})

def right(): return made()
def refuses(): raise ValueError("boom")
def number(): return made(signal=lambda feedback: 1.0)
def flat(): return made(signal=lambda feedback: feedback.rewards)
def few(): return made(signal=lambda feedback: feedback.rewards[:1, None])
def missing(): return made(signal=lambda feedback: feedback.rewards[:, None] / 0 * 0)
def one(): return made(weigh=lambda mask: 1.0)
def rows(): return made(weigh=lambda mask: mask.sum(1))
def reduced(): return made(loss=lambda steps, signal: Loss((-signal * steps.log_probs).mean(), {}))
def bare(): return made(loss=lambda steps, signal: -signal * steps.log_probs)
def listed(): return made(loss=lambda steps, signal: Loss([1.0], {}))
def cut(): return made(loss=lambda steps, signal: Loss(-signal * steps.log_probs.detach(), {}))
def lost(): return made(loss=lambda steps, signal: Loss(-signal * steps.logprobs, {}))
def parted():
    advantage = lambda feedback: 1.0
    return policy_gradient(advantage=advantage, log_ratio=ratios.LIKELIHOOD, surrogate=surrogates.likelihood, weigh=weights.sequence_mean)
"""
AT = OWN.splitlines().index("def lost(): return made(loss=lambda steps, signal: Loss(-signal * steps.logprobs, {}))") + 1


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_methods.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_methods", raising=False)


def asked(method: Method) -> None:
    """Everything that a run asks a method, of two rows of three steps."""
    mask, rewards = torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, 3.0]).double()
    steps = Steps(torch.full((2, 3), -1.0).double().requires_grad_(), mask)
    signal = method.signal(Feedback(rewards, torch.tensor([0, 0])))
    weight = method.weigh(mask)
    (weight * method.loss(steps, signal).values).sum().backward()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("number", "its signal is of type float, takes a tensor [2, 1] or [2, steps]"),
        ("flat", "its signal is a tensor [2], takes a tensor [2, 1] or [2, steps]"),
        ("few", "its signal is a tensor [1, 1], takes a tensor [2, 1]"),
        ("missing", "its signal is NaN in 2 of 2 rows; takes 0 where nothing is known of a row"),
        ("one", "its weigh gives of type float, takes a tensor [2, 3], as the mask"),
        ("rows", "its weigh gives a tensor [2], takes a tensor [2, 3]"),
        ("reduced", "the values of its loss are a tensor [], takes [2, 3] or [2, 1]: a value for each cell, not reduced"),
        ("bare", "its loss gives a tensor [2, 3], takes types.Loss(values, metrics)"),
        ("listed", "its loss gives a Loss whose values are of type list, takes"),
        ("cut", "the values of its loss have no gradient"),
        ("lost", f"its loss raised AttributeError: 'Steps' object has no attribute 'logprobs' (their_methods.py, line {AT})"),
        ("parted", "its signal raised AttributeError: 'float' object has no attribute 'detach'"),
    ],
)
def test_a_mistake_in_a_method_of_ones_own_is_a_line(name: str, says: str) -> None:
    method = build_part({"method": {"use": f"their_methods.{name}"}}, "method")
    with pytest.raises(UserError) as error:
        asked(method)
    assert str(error.value).startswith(f"method: their_methods.{name}: {says}") and "\n" not in str(error.value)


def test_a_right_one_goes_through_and_ours_are_left_alone() -> None:
    asked(build_part({"method": {"use": "their_methods.right"}}, "method"))
    ours = build_part({"method": {"use": "grpo"}}, "method")
    assert ours.signal.__module__.startswith("mmalign.objectives") and isinstance(replace(ours), Method)


def test_what_a_factory_raises_is_said_with_its_kind_and_place() -> None:
    lines = check({**load("digits/demo"), "method": {"use": "their_methods.refuses"}}, trust=True)
    assert "method: raised ValueError: boom (their_methods.py, line 13)" in lines
