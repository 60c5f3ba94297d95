from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import mmalign as mm
from mmalign.evaluation.preference import length_controlled_win_rate, win_rate
from mmalign.types import UserError

NAN = float("nan")


def test_ties_are_half_and_the_undecided_are_left_out():
    scores = win_rate([1, 0, 0.5, NAN, 1], list("abcde"))
    assert scores.values["win_rate"].value == 2.5 / 4
    assert (scores.values["wins"].value, scores.values["ties"].value, scores.values["losses"].value) == (0.5, 0.25, 0.25)
    assert scores.counts == {"comparisons": 5, "missing": 1}
    assert scores.rows[3] is None
    assert math.isnan(win_rate([NAN], ["a"]).values["win_rate"].value)
    assert mm.evaluation.win_rate([NAN, 1], ["a", "b"]).counts["missing"] == 1  # as users call it, who may say that one is missing


def test_repetitions_of_a_prompt_are_no_new_evidence():
    outcomes = np.random.default_rng(0).integers(0, 2, 50).tolist()
    once = win_rate(outcomes, range(50)).values["win_rate"]
    thrice = win_rate(outcomes * 3, list(range(50)) * 3).values["win_rate"]
    assert thrice == once
    assert win_rate(outcomes * 3, range(150)).values["win_rate"].error < 0.7 * once.error


def test_odd_outcomes():
    with pytest.raises(UserError, match="outcome 2"):
        win_rate([2.0], ["a"])
    with pytest.raises(UserError, match="1 outcomes and 2 prompts"):
        win_rate([1.0], ["a", "b"])


def simulated(rng, rows, quality, favour):
    lengths, others = rng.gamma(4, 100, rows) * 1.6, rng.gamma(4, 100, rows)
    gap = lengths - others
    feature = np.tanh(gap / gap.std(ddof=1))
    won = rng.random(rows) < 1 / (1 + np.exp(-(quality + favour * feature)))
    return won.astype(float), lengths, others, feature


def test_a_judge_who_likes_long_answers():
    won, lengths, others, feature = simulated(np.random.default_rng(0), 4000, 0.0, 2.0)
    raw = win_rate(won, range(4000)).values["win_rate"].value
    rate = length_controlled_win_rate(won, lengths, others, range(4000), resamples=100)
    assert raw > 0.62
    assert rate.low < 0.5 < rate.high and abs(rate.value - 0.5) < 0.03
    # the same maximum of the likelihood as scikit-learn finds
    features = np.stack([feature, np.ones_like(feature)], 1)
    fitted = LogisticRegression(C=1e6, fit_intercept=False, tol=1e-10).fit(features, won)
    assert rate.value == pytest.approx(1 / (1 + math.exp(-fitted.coef_[0, 1])), abs=1e-4)


def test_equal_lengths_leave_the_win_rate():
    rate = length_controlled_win_rate([1, 1, 0.5, NAN], [5] * 4, [5] * 4, list("abcd"))
    assert rate.value == pytest.approx(2.5 / 3, abs=1e-4)
    assert rate.low < rate.value < rate.high + 1e-9


def test_all_won():
    rate = length_controlled_win_rate([1.0] * 20, range(20), [10] * 20, range(20), resamples=20)
    assert 0.95 < rate.value <= 1.0 and not math.isnan(rate.low)
    assert math.isnan(length_controlled_win_rate([NAN], [1], [1], ["a"]).value)
