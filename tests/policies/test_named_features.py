"""Reward models of numbers that have names, under a small network, and what they learn of few pairs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair, RefusedRow
from mmalign.types import UserError


def of_sign(place: int) -> Any:
    """A reward that reads the sign at a place of an answer; none of an empty one."""

    def reward(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        return torch.tensor([float("nan") if not output else 1.0 if output[place] == "+" else -1.0 for output in outputs])

    return reward


def reader(**settings: Any) -> Any:
    return mm.policies.named_features(rewards={"first": of_sign(0), "second": of_sign(1)}, **settings)


def test_a_network_in_straight_lines() -> None:
    head: Any = mm.heads.mlp(width=4, layers=2, activation="tanh").make(3, ["a", "b"]).double()
    with torch.no_grad():
        for number, parameter in enumerate(head.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    features = torch.randn(2, 3, generator=torch.Generator().manual_seed(9)).double()
    for row in range(2):
        states = features[row].tolist()
        for weight, bias in zip([one.tolist() for one in head.hidden], [one.tolist() for one in head.biases], strict=True):
            states = [math.tanh(sum(w * s for w, s in zip(own, states, strict=True)) + b) for own, b in zip(weight, bias, strict=True)]
        wanted = [sum(w * s for w, s in zip(own, states, strict=True)) for own in head.out.tolist()]
        assert head(features)[row].tolist() == pytest.approx(wanted, rel=1e-12)


def test_features_are_the_rewards_on_their_scales_and_a_missing_one_is_no_row() -> None:
    own = reader(scales={"second": [1.0, 4.0]})
    rollout = own.read(["p"] * 2, ["+-", "-+"], torch.tensor([0, 1]), None)
    assert own.features(rollout, torch.tensor([1, 0])).tolist() == [[-1.0, 0.0], [1.0, -0.5]]
    with pytest.raises(RefusedRow, match="row 1: first has no score of it"):
        own.read(["p"] * 2, ["+-", ""], torch.tensor([0, 1]), None)


def test_pairs_of_an_exclusive_or_are_learned_by_the_network_alone(tmp_path: Path) -> None:
    """Better is whose two signs agree, which no sum of the two features tells."""
    answers = ["++", "--", "+-", "-+"]
    both = list(itertools.product(answers[:2], answers[2:]))
    pairs, unseen = (
        [Pair("p", good + name, bad + name, id=f"{name} {good}{bad}") for name in of for good, bad in both] for of in ("abcd", "e")
    )

    def trained(head: Any, name: str) -> tuple[float, Any]:
        run = mm.offline(
            mm.policies.scorer(reader(), head=head), pairs, mm.methods.bradley_terry(), steps=40, batch={"records": 16},
            optimizer=mm.adamw(rate=3e-2), evaluation={"records": unseen, "every": 40},
            run={"folder": str(tmp_path), "name": name, "trackers": (), "checkpoint_every": 40},
        )  # fmt: skip
        return run.summary["held_out/accuracy_after"], run

    accuracy, run = trained(mm.heads.mlp(width=8), "mlp")
    assert accuracy == 1.0
    assert trained(mm.heads.linear(), "linear")[0] <= 0.75
    scores = run.policy.score(["p"] * 4, answers)[:, 0]
    assert scores[:2].min() > scores[2:].max() and set(run.policy.parameters()) == {
        "head.hidden.0", "head.biases.0", "head.out"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rewards": {}}, r"policy\.of\.rewards: got \{\}, takes at least one"),
        ({"rewards": {"right": mm.rewards.exact_match()}}, r"policy\.of\.rewards\.right: reads the column 'answer'"),
        ({"rewards": {"a": of_sign(0)}, "scales": {"b": [0.0, 1.0]}}, r"policy\.of\.scales: no reward 'b'; takes a"),
        ({"rewards": {"a": of_sign(0)}, "scales": {"a": [0.0, 0.0]}}, r"policy\.of\.scales\.a: got \[0.0, 0.0\], takes \[centre, scale\]"),
    ],
)
def test_what_names_no_features_is_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        mm.policies.named_features(**given)
