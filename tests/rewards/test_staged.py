"""Candidates in stages: who is asked about what, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError

NAN = math.nan
CHEAP = {"a": 1.0, "b": 3.0, "c": NAN, "d": 2.0, "e": 3.0}
"""Of each letter; the dear reward is asked for letters alone and says minus the cheap one."""


def asking(scores, heard):
    def reward(outputs, prompts, **columns):
        heard.append("".join(outputs))
        return torch.tensor([scores[letter] for letter in outputs], dtype=torch.float64)

    return reward


def made(keep, dear=None, **settings):
    heard = {"cheap": [], "dear": []}
    answers = dear or {letter: -value for letter, value in CHEAP.items()}
    rewards = {"cheap": asking(CHEAP, heard["cheap"]), "dear": asking(answers, heard["dear"])}
    return mm.rewards.staged(rewards=rewards, keep=keep, **settings), heard


def test_the_dear_reward_is_asked_about_the_best_of_each_prompt():
    """Of x: a 1, b 3, c nothing, e 3; of y: d 2 and c nothing."""
    reward, heard = made({"cheap": 2})
    scores = reward(list("adbcec"), ["x", "y", "x", "x", "x", "y"])
    assert heard == {"cheap": ["adbcec"], "dear": ["dbec"]}  # c goes on where there is room beside d
    torch.testing.assert_close(scores, torch.tensor([NAN, -2.0, -3.0, NAN, -3.0, NAN], dtype=torch.float64), equal_nan=True)
    assert dict(reward.counts) == {"asked/cheap": 6, "missing/cheap": 2, "asked/dear": 4, "missing/dear": 1}
    reward(["a"], ["x"])
    assert reward.counts["asked/cheap"] == 7
    again, _ = made({"cheap": 2})
    again.state.load(reward.state.dump())
    assert again.counts == reward.counts


def test_of_equal_ones_the_first_goes_on():
    reward, heard = made({"cheap": 1})
    reward(list("aeb"), ["x"] * 3)
    assert heard["dear"] == ["e"]


def test_three_stages_and_columns_of_the_rows_that_are_left():
    seen = []

    def dear(outputs, prompts, *, place, **columns):
        seen.append((outputs, list(place)))
        return torch.zeros(len(outputs))

    rewards = {"cheap": asking(CHEAP, []), "back": asking({**CHEAP, "d": 9.0}, []), "dear": dear}
    reward = mm.rewards.staged(rewards=rewards, keep={"cheap": 3, "back": 1}, apart=True)
    parts = reward(list("abde"), ["x"] * 4, place=[0, 1, 2, 3])
    assert seen == [(["d"], [2])]
    assert {name: rows.nan_to_num(-1.0).tolist() for name, rows in parts.items()} == {
        "score": [-1.0, -1.0, 0.0, -1.0], "asked/cheap": [1, 1, 1, 1], "asked/back": [0, 1, 1, 1], "asked/dear": [0, 0, 1, 0],
    }  # fmt: skip


def test_what_is_left_is_summed():
    reward = mm.rewards.staged(rewards={"one": asking(CHEAP, []), "cheap": asking(CHEAP, []), "two": asking(CHEAP, [])}, keep={"cheap": 1})
    assert reward(list("ab"), ["x"] * 2).nan_to_num(-1.0).tolist() == [-1.0, 6.0]
    assert dict(reward.counts) == {"asked/cheap": 2, "asked/one+two": 1}


@pytest.mark.parametrize(
    ("keep", "line"),
    [
        ({"other": 1}, "staged.keep: got 'other', takes names of rewards: cheap, dear"),
        ({"cheap": 2, "dear": 1}, "staged.keep: got cheap, dear, which is every reward; takes all but those of the last stage"),
        ({"cheap": 0}, "staged.keep: got {'cheap': 0}, takes 1 or more"),
    ],
)
def test_what_is_refused(keep, line):
    with pytest.raises(UserError, match=line):
        made(keep)


def test_numbers_have_to_fall():
    three = dict.fromkeys("abc", lambda outputs, prompts: torch.zeros(len(outputs)))
    with pytest.raises(UserError, match=r"staged.keep: got \{'a': 2, 'b': 2\}, takes 1 or more, each fewer than the one before"):
        mm.rewards.staged(rewards=three, keep={"a": 2, "b": 2})
