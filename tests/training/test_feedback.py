"""What rewards and metrics may answer, and what becomes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.training.rollouts.feedback import ask, feedback_on, measure
from mmalign.types import Rollout, UserError

OUTPUTS, PROMPTS = torch.tensor([[0.0], [1.0], [2.0]]), ["a", "a", "b"]


def rollout() -> Rollout:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    return Rollout(PROMPTS, OUTPUTS, torch.zeros(3, 2, dtype=torch.float64), mask, torch.tensor([0, 0, 1]))


def test_answers_of_every_kind_become_float64_rows() -> None:
    rewards = {
        "half": lambda o, p: o[:, 0].half(),
        "list": lambda o, p: [1, 2, 3],
        "yes": lambda o, p: o[:, 0] > 0.5,
        "parts": lambda o, p: {"x": o[:, 0], "y": [0.5] * 3},
        "some": lambda o, p: torch.tensor([1.0, torch.nan, 3.0]),
        "graph": lambda o, p: o[:, 0].clone().requires_grad_(),
    }
    scores = ask(rewards, OUTPUTS, PROMPTS)
    assert list(scores) == ["half", "list", "yes", "parts/x", "parts/y", "some", "graph"]
    assert all(value.dtype == torch.float64 and value.shape == (3,) and not value.requires_grad for value in scores.values())
    assert scores["yes"].tolist() == [0, 1, 1] and scores["parts/y"].tolist() == [0.5] * 3 and bool(scores["some"].isnan()[1])


def raises(outputs: Any, prompts: list[str]) -> Any:
    raise KeyError("weights.pt")


def refuses(outputs: Any, prompts: list[str]) -> Any:
    raise UserError("takes images")


BAD = [
    (raises, rf"reward r: raised KeyError: 'weights\.pt' \(test_feedback\.py, line {raises.__code__.co_firstlineno + 1}\)$"),
    (lambda o, p: torch.zeros(2) + torch.zeros(3), r"reward r: raised RuntimeError: .* \(test_feedback\.py, line \d+\)$"),
    (refuses, "reward r: takes images"),
    (lambda o, p: o, r"reward r: returned shape \[3, 1\], takes \[3\]: one score for each output"),
    (lambda o, p: torch.zeros(2), r"reward r: returned shape \[2\], takes \[3\]"),
    (lambda o, p: 1.0, r"reward r: returned shape \[\], takes \[3\]"),
    (lambda o, p: None, r"reward r: returned NoneType, takes a tensor \[3\]"),
    (lambda o, p: "abc", r"reward r: returned str, takes a tensor \[3\]"),
    (lambda o, p: [1.0, "0.5", "0.7"], r"reward r: returned '0\.5' as a score, takes numbers, and NaN or None for a missing one"),
    (lambda o, p: [1.0, None, {"score": 1}], r"reward r: returned {'score': 1} as a score, takes numbers"),
    (lambda o, p: (1.0, b"2", 3.0), r"reward r: returned b'2' as a score, takes numbers"),
    (lambda o, p: (torch.zeros(3), {"strict": 1}), r"reward r: returned a tuple of scores and a dict, .*; takes the scores alone"),
    (lambda o, p: [None, None], r"reward r: returned shape \[2\], takes \[3\]"),
    (lambda o, p: {"x": torch.zeros(3, 3)}, r"reward r/x: returned shape \[3, 3\]"),
    (lambda o, p: -o[:, 0] / 0, "reward r: returned an infinite score"),
]


@pytest.mark.parametrize(("reward", "line"), BAD)
def test_a_bad_reward_is_one_line_with_its_name(reward: Any, line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        ask({"fine": lambda o, p: o[:, 0], "r": reward}, OUTPUTS, PROMPTS)
    assert "\n" not in str(caught.value)


def test_metrics_are_numbers_by_their_own_names() -> None:
    assert measure({"m": lambda o, p: {"x": o.sum(), "y": 2}, "n": lambda o, p: {"z": 0.5}}, OUTPUTS, PROMPTS) == {
        "x": 3.0,
        "y": 2.0,
        "z": 0.5,
    }
    for metric, line in (
        (raises, "metric m: raised KeyError"),
        (lambda o, p: 3.0, "metric m: returned float"),
        (lambda o, p: {"x": o}, "metric m: returned Tensor for x, takes a number"),
    ):
        with pytest.raises(UserError, match=line):
            measure({"m": metric}, OUTPUTS, PROMPTS)


def test_the_scalar_is_the_weighted_sum_and_parts_stay_apart() -> None:
    rewards = {"a": lambda o, p: o[:, 0], "b": lambda o, p: torch.ones(3), "c": lambda o, p: {"x": -o[:, 0]}}
    feedback = feedback_on(rewards, rollout(), combine=mm.combinations.weighted_sum(weights={"a": 2.0, "b": 1.0, "c/x": 0.5}))
    assert feedback.rewards.tolist() == [1.0, 2.5, 4.0] and list(feedback.parts) == ["a", "b", "c/x"]
    assert feedback.group.tolist() == [0, 0, 1] and feedback.lengths is not None and feedback.lengths.tolist() == [2, 1, 2]
    assert feedback_on(rewards, rollout()).rewards.tolist() == [1.0, 1.0, 1.0]  # their sum
    with pytest.raises(UserError, match=r"weighted_sum\.weights: got 'c', takes rewards that are there: a, b, c/x"):
        feedback_on(rewards, rollout(), combine=mm.combinations.weighted_sum(weights={"c": 1.0}))


def test_missing_scores_stop_or_are_left_missing() -> None:
    rewards = {"a": lambda o, p: torch.tensor([1.0, torch.nan, 3.0]), "b": lambda o, p: torch.tensor([torch.nan, 1.0, 1.0])}
    with pytest.raises(UserError, match=r"reward a: 1 of 3 scores are NaN \(batch.missing: drop goes on without those rows\)"):
        feedback_on(rewards, rollout())
    assert feedback_on(rewards, rollout(), missing="drop").rewards.isnan().tolist() == [True, True, False]
    feedback = feedback_on(rewards, rollout(), missing="drop", combine=mm.combinations.weighted_sum(weights={"a": 1.0}))
    assert feedback.rewards.isnan().tolist() == [False, True, False] and feedback.rewards[2] == 3.0


@pytest.mark.parametrize(
    ("values", "scores"), [([1.0, None], [1.0, float("nan")]), ((2, True), [2.0, 1.0]), ([None, None], [float("nan")] * 2)]
)
def test_none_in_a_list_is_no_score(values, scores):
    answer = ask({"own": lambda outputs, prompts: values}, ["a", "b"], ["x", "y"])["own"]
    torch.testing.assert_close(answer, torch.tensor(scores, dtype=torch.float64), equal_nan=True)
