"""Scores of parts of outputs, at the steps that wrote those parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.needs import REWARDS
from mmalign.training.rollouts.feedback import ask, feedback_on
from mmalign.types import Rollout, UserError

TEXTS = ["a cat. a dog.", "no", "été"]
#          one step for each two characters; the last row is cut within a letter, and its last step writes nothing
SPANS = [[(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 13), (13, 13)], [(0, 2)], [(0, 1), (1, 1), (1, 3), (3, 3)]]


def rollout(**more: Any) -> Rollout:
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, spans in enumerate(SPANS):
        mask[row, : len(spans)] = True
    parted = {
        "outputs": TEXTS,
        "log_probs": torch.zeros(3, 9, dtype=torch.float64),
        "mask": mask,
        "group": torch.arange(3),
        "spans": lambda: SPANS,
    }
    return Rollout(["p"] * 3, **{**parted, **more})


def parts(outputs: Any, prompts: Any) -> Any:
    return [[(0, 6, 1.0), (7, 13, -2.0)], [(0, 1, 0.5)], [(1, 2, 4.0)]]


def test_a_score_stands_at_the_last_step_that_wrote_some_of_its_part() -> None:
    feedback = feedback_on(
        {"fine": parts, "whole": lambda o, p: [10.0, 20.0, 30.0]},
        rollout(),
        combine=mm.combinations.weighted_sum(weights={"fine": 2.0, "whole": 1.0}),
    )
    table = feedback.tables[REWARDS]
    assert table.dtype == torch.float64
    assert {(row, step): table[row, step].item() for row, step in table.nonzero().tolist()} == {
        (0, 2): 2.0, (0, 6): -4.0, (1, 0): 1.0, (2, 2): 8.0,
    }  # fmt: skip
    assert feedback.parts["fine"].tolist() == [-1.0, 0.5, 4.0] and feedback.rewards.tolist() == [8.0, 21.0, 38.0]


def test_steps_that_do_not_count_earn_nothing() -> None:
    mask = rollout().mask
    mask[0, 2], mask[0, 5:], mask[1], mask[2, 0] = False, False, False, False
    table = feedback_on({"fine": parts}, rollout(mask=mask)).tables[REWARDS]
    assert {(row, step): table[row, step].item() for row, step in table.nonzero().tolist()} == {(0, 1): 1.0, (0, 4): -2.0, (2, 2): 4.0}
    mask[2] = torch.tensor([False, False, False, True] + [False] * 5)
    first = feedback_on({"fine": lambda o, p: [[], [], [(0, 1, 4.0)]]}, rollout(mask=mask)).tables[REWARDS]
    assert first.nonzero().tolist() == [[2, 3]]  # nothing that counts was written before: the first step that does


def test_two_rewards_add_up_and_a_part_that_cannot_be_judged_is_missing() -> None:
    twice = {"a": parts, "b": lambda o, p: {"x": [[(0, 6, 3.0)], None, [(0, 1, torch.nan), (1, 3, 1.0)]]}}
    with pytest.raises(UserError, match="reward b/x: 2 of 3 scores are NaN"):
        feedback_on(twice, rollout())
    feedback = feedback_on(twice, rollout(), missing="drop")
    assert feedback.rewards.tolist()[0] == 2.0 and feedback.rewards.isnan().tolist() == [False, True, True]
    assert feedback.tables[REWARDS][0, 2] == 4.0 and not feedback.tables[REWARDS].isnan().any()


def test_as_judges_they_are_sums() -> None:
    assert ask({"fine": parts}, TEXTS, ["p"] * 3)["fine"].tolist() == [-1.0, 0.5, 4.0]


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ([[(0, 14, 1.0)], [], []], r"reward r: returned \(0, 14, 1.0\) for an output of 13 characters"),
        ([[(3, 3, 1.0)], [], []], r"returned \(3, 3, 1.0\)"),
        ([[(0, 1, float("inf"))], [], []], "inf"),
        ([[], []], "returned parts of 2 outputs, takes 3"),
        ([[1.0], [], []], r"reward r: returned 1.0 for a part of an output, takes \(start, end, score\)"),
        ([[(0, 1)], [], []], r"reward r: returned \(0, 1\) for a part of an output, takes \(start, end, score\)"),
        ([[(0, 1, "0.5")], [], []], r"reward r: returned \(0, 1, '0.5'\) for a part of an output, takes \(start, end, score\)"),
    ],
)
def test_what_is_no_part_is_refused(answer: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        feedback_on({"r": lambda o, p: answer}, rollout())


def test_pictures_have_no_parts() -> None:
    with pytest.raises(UserError, match="reward r: scores parts of an output that is a Tensor"):
        feedback_on({"r": lambda o, p: [[(0, 1, 1.0)]] * 3}, rollout(outputs=torch.zeros(3, 1)))
    with pytest.raises(UserError, match="takes a policy whose steps are tokens"):
        feedback_on({"fine": parts}, rollout(spans=None))
