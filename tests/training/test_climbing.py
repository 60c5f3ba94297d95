"""Updates whose gradient is taken where something else has been climbed to, against straight lines of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import Method

RATE = 3.0


def of_length(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
    return torch.tensor([float(len(output)) for output in outputs])


def of_dots(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
    return torch.tensor([float(output.count(".")) for output in outputs])


LABELLED = [Pair("p", "aaa.", "b", id="0"), Pair("p", "..", "cccc", id="1")]
SHIFTED = [Pair("p", "dd", "e...", id="2")]


def stepped(method: Method, folder: Path, pairs: Any, *, micro_rows: int = 2, start: tuple[float, float] = (0.3, -0.2)) -> Tensor:
    """The two weights after an update of SGD with rate 1 on all pairs."""
    policy: Any = mm.policies.scorer(mm.policies.named_features(rewards={"dots": of_dots, "length": of_length}))
    with torch.no_grad():
        policy.head.weight.copy_(torch.tensor([start]))
    mm.offline(
        policy, pairs, method, steps=1, batch={"records": 3, "micro_rows": micro_rows}, optimizer=mm.sgd(rate=1.0, max_norm=1e9),
        evaluation={"records": [Pair("q", ".", "ff", id="e")], "every": 1},
        run={"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 5},
    )  # fmt: skip
    return policy.head.weight.detach()[0].double()  # type: ignore[no-any-return]


def by_hand(rate: float) -> Tensor:
    """MetaRM's update in straight lines: ascend, take the gradient there, apply it to where one began."""
    gaps = {  # dots and length of the better row less those of the worse
        "0": torch.tensor([1.0, 3.0]), "1": torch.tensor([2.0, -2.0]), "2": torch.tensor([-3.0, -2.0]),
    }  # fmt: skip
    theta = torch.tensor([0.3, -0.2]).double().requires_grad_()
    spread = torch.sigmoid((gaps["2"].double() @ theta).abs()) / 3
    (up,) = torch.autograd.grad(spread, theta)
    there = (theta + rate * up).detach().requires_grad_()
    loss = sum(torch.log1p(torch.exp(-(gaps[name].double() @ there))) for name in "01") / 3
    (down,) = torch.autograd.grad(loss, there)
    return (theta - down).detach()


@pytest.mark.parametrize("micro_rows", [2, 6])
def test_the_gradient_is_taken_where_the_step_before_led_and_applied_where_it_began(tmp_path: Path, micro_rows: int) -> None:
    three = [*LABELLED, next(mm.data.unlabelled(SHIFTED).stream(seed=0))]
    got = stepped(mm.methods.meta_reward(rate=RATE), tmp_path, three, micro_rows=micro_rows)
    torch.testing.assert_close(got, by_hand(RATE), rtol=1e-5, atol=1e-6)
    assert (by_hand(RATE) - by_hand(0.0)).abs().max() > 1e-2  # the step before makes a difference


def test_without_a_step_before_it_is_bradley_terry(tmp_path: Path) -> None:
    got = stepped(mm.methods.meta_reward(rate=0.0), tmp_path, [*LABELLED, next(mm.data.unlabelled(SHIFTED).stream(seed=0))])
    torch.testing.assert_close(got, by_hand(0.0), rtol=1e-5, atol=1e-6)
