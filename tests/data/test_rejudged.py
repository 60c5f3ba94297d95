"""Pairs that rewards judge again: what becomes of their scores and labels, and a run on them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.records import Pair, Thumb, Unfinished
from mmalign.training.records.own_rows import OwnRows
from mmalign.types import UserError
from tests.policies.test_scorer import reader, settings

NAN = math.nan
PAIRS = [Pair("p", "aaa", "a", strength, id=f"{number}") for number, strength in enumerate([1.0, 0.25])] + [
    Pair("p", "a", "aa", 1.0, id="2"), Pair("p", "b", "b", 1.0, id="3"), Pair("p", "?", "b", 1.0, id="4"),
]  # fmt: skip


def length(outputs: Any, prompts: Any, **columns: Any) -> list[float]:
    return [NAN if output == "?" else float(len(output)) for output in outputs]


def judged(**given: Any) -> tuple[list[float], list[tuple[float, float]]]:
    records = mm.data.rejudged(PAIRS, rewards={"length": length}, **given)
    assert isinstance(records, Unfinished)
    author: Any = OwnRows(None, None, seed=0, rows_at_once=1)  # type: ignore[arg-type]
    found = records.settled(records.finished(list(PAIRS), author))
    return [pair.strength for pair in found], [pair.scores for pair in found]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({}, [1.0, 0.25, 1.0, 1.0, 1.0]),
        ({"label": "flip"}, [1.0, 0.75, 0.0, 1.0, 1.0]),
        ({"label": "flip", "least": 1.5}, [1.0, 0.75, 1.0, 1.0, 1.0]),
        ({"label": "soft", "scale": 2.0}, [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5)), 0.5, NAN]),
        ({"label": "hard"}, [1.0, 1.0, 0.0, 0.5, NAN]),
        ({"label": "hard", "least": 1.0}, [1.0, 1.0, 0.5, 0.5, NAN]),
    ],
)
def test_labels_follow_what_rewards_say(given: dict[str, Any], labels: list[float]) -> None:
    strengths, scores = judged(**given)
    assert strengths == pytest.approx(labels, nan_ok=True)
    assert scores[:4] == [(3.0, 1.0), (3.0, 1.0), (1.0, 2.0), (1.0, 1.0)] and math.isnan(scores[4][0])


def test_a_hierarchy_of_rewards_labels_by_the_first_that_tells_two_apart() -> None:
    """HERON: by length where that differs by more than 1, else by the alphabet."""
    pairs = [Pair("p", "a", "ccc", id="0"), Pair("p", "b", "aa", id="1"), Pair("p", "a", "a", id="2")]
    rewards = {"length": length, "late": lambda outputs, prompts, **_: [float(ord(output[0])) for output in outputs]}
    order = mm.combinations.lexicographic(order={"length": 1.0, "late": 0.0})
    records = mm.data.rejudged(pairs, rewards=rewards, combine=order, label="hard")
    author: Any = OwnRows(None, None, seed=0, rows_at_once=1)  # type: ignore[arg-type]
    assert [pair.strength for pair in records.finished(pairs, author)] == [0.0, 1.0, 0.5]


def test_a_reward_model_learns_the_margin_that_an_ensemble_says(tmp_path: Path) -> None:
    """mu is the mean of two rewards, 1.5 times the difference of lengths: scores are that far apart at least."""
    words = ["no", "not", "or no", "is it", "the answer"]
    pairs = [Pair(p, a, b, float(len(a) > len(b)), id=f"{p} {a} {b}") for p in ("abc", "why") for a in words for b in words if a < b]
    rewards = {"one": length, "two": lambda outputs, prompts, **_: [2 * value for value in length(outputs, prompts)]}
    records = mm.data.rejudged(pairs, rewards=rewards, combine=mm.combinations.lower_bound(k=0.0))
    given = settings(tmp_path) | {"evaluation": {"records": [Pair("one two", "no", "not", 0.0, id="held", scores=(3.0, 4.5))]}}
    apart = mm.offline(mm.policies.scorer(reader(lora={"rank": 2})), records, mm.methods.bradley_terry(margin=1.0), **given).summary
    assert apart["held_out/loss_before"] == pytest.approx(math.log1p(math.exp(1.5)))
    assert apart["held_out/loss_after"] < apart["held_out/loss_before"]


def test_what_it_cannot_take_is_one_line() -> None:
    with pytest.raises(UserError, match=r"records.rewards: got none"):
        mm.data.rejudged(PAIRS, rewards={})
    with pytest.raises(UserError, match=r"records.of: got a Thumb"):
        next(mm.data.rejudged([Thumb("p", "a", 1.0)], rewards={"length": length}).stream(seed=0))
