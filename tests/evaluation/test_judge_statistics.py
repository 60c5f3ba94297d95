"""Judges made by hand, whose statistics are counted exactly."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

import mmalign as mm
from mmalign.types import UserError

NAN = math.nan
LENGTHS = np.array([[9.0, 2.0], [3.0, 8.0], [5.0, 5.0], [7.0, 1.0]])
PEOPLE = [1, -1, 1, -1]  # of pairs of unequal length they prefer the longer twice, the shorter once


def asked(prefers_first):
    """Verdicts of a judge that sees two outputs: ``(number of the pair, place of what it reads first) -> P(first read)``."""
    return [[prefers_first(pair, 0), prefers_first(pair, 1)] for pair in range(4)]


def values(verdicts, **more):
    return {name: value.value for name, value in mm.evaluation.judge_statistics(verdicts, resamples=10, **more).values.items()}


def test_always_the_first():
    found = values(asked(lambda pair, place: 1.0), lengths=LENGTHS, preferred=PEOPLE)
    assert found["position_bias"] == 1 and found["order_flips"] == 1 and found["accuracy"] == 0.5 and found["accuracy_both"] == 0
    assert found["prefers_longer"] == 0.5 and found["length_bias"] == 0
    last = values(asked(lambda pair, place: 0.0))
    assert last["position_bias"] == -1 and last["order_flips"] == 1


def test_the_longer_one():
    def longer(pair, place):
        return {1.0: 1.0, 0.0: 0.5, -1.0: 0.0}[np.sign(LENGTHS[pair][place] - LENGTHS[pair][1 - place])]

    found = values(asked(longer), lengths=LENGTHS, preferred=PEOPLE)
    assert found["prefers_longer"] == 1 and found["length_bias"] == 1 and found["position_bias"] == 0 and found["order_flips"] == 0
    assert found["accuracy"] == (1 + 1 + 0.5 + 0) / 4 and found["accuracy_both"] == 0.5


def test_a_perfect_one():
    found = values(asked(lambda pair, place: float((PEOPLE[pair] == 1) == (place == 0))), lengths=LENGTHS, preferred=PEOPLE)
    assert found["accuracy"] == found["accuracy_both"] == 1 and found["length_bias"] == 0 == found["position_bias"] == found["order_flips"]
    assert found["prefers_longer"] == pytest.approx(2 / 3) and "flip_rate" not in found  # nothing was asked twice


@pytest.mark.parametrize("repetitions", [2, 3])
def test_a_coin_in_all_its_throws(repetitions):
    throws = np.array(list(product([0.0, 1.0], repeat=2 * repetitions))).reshape(-1, 2, repetitions)
    found = values(throws, preferred=[1] * len(throws), lengths=[[2, 1]] * len(throws))
    assert found["flip_rate"] == pytest.approx(0.5, abs=1e-12)
    for name, expected in {
        "position_bias": 0,
        "order_flips": 0.5,
        "accuracy": 0.5,
        "accuracy_both": 0.25,
        "prefers_longer": 0.5,
        "noise": 0.5,
    }.items():
        assert found[name] == pytest.approx(expected, abs=1e-7), name
    assert found["self_consistency"] == pytest.approx({2: 0.75, 3: 0.75}[repetitions])
    assert "accuracy_without_noise" not in found  # of a coin nothing is left


def test_what_is_left_without_noise():
    # right with probability .9, over all ten patterns: of ten answers one is turned, and each order of the pair alike
    verdicts = np.ones((10, 2, 10))
    for place in range(10):
        verdicts[place, :, place] = 0.0
    verdicts[:, 1] = 1 - verdicts[:, 1]
    found = values(verdicts, preferred=[1] * 10)
    assert found["accuracy"] == 0.9 and found["flip_rate"] == pytest.approx(9 / 45)
    q = (1 - math.sqrt(1 - 2 * 0.2)) / 2
    assert found["noise"] == pytest.approx(q) and found["accuracy_without_noise"] == pytest.approx((0.9 - q) / (1 - 2 * q))
    assert found["self_consistency"] == pytest.approx(0.9)


def test_missing_verdicts_are_left_out_and_counted():
    scores = mm.evaluation.judge_statistics([[1.0, NAN], [1.0, 0.0], [NAN, NAN]], preferred=[1, 1, 1], resamples=10)
    assert scores.counts == {"pairs": 3, "asked": 6, "missing": 3}
    assert scores.values["position_bias"].value == 0 and scores.values["accuracy"].value == 1 and scores.rows[2] is None
    ties = values([[0.5, 0.5]], preferred=[1])
    assert ties == {"position_bias": 0, "order_flips": 0, "accuracy": 0.5, "accuracy_both": 0}


def test_templates_that_agree():
    first, second = [[1.0, 0.0]] * 4, [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    found = mm.evaluation.judge_agreement({"a": first, "b": second, "c": [[1.0, 1.0], *second[1:]]})
    assert found["a x b"].value == 0.5 and found["kappa a x b"].value == 0
    assert found["b x c"].value == 1 and found["kappa b x c"].value == 1  # the pair that c is torn over is left out
    with pytest.raises(UserError, match="takes two or more of the same"):
        mm.evaluation.judge_agreement({"a": first})


def test_what_is_refused():
    with pytest.raises(UserError, match=r"got a table of shape \[2, 3\], takes \[pairs, 2 orders, repetitions\]"):
        mm.evaluation.judge_statistics([[1, 1, 1], [1, 1, 1]])
    with pytest.raises(UserError, match="got 2, takes probabilities"):
        mm.evaluation.judge_statistics([[2.0, 1.0]])
    with pytest.raises(UserError, match="got 1 pairs and 2 preferred"):
        mm.evaluation.judge_statistics([[1.0, 1.0]], preferred=[1, 1])
