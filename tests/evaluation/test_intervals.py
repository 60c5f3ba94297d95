from __future__ import annotations

import math

import numpy as np
import pytest

from mmalign.evaluation.intervals import estimates, ratio
from mmalign.types import UserError


def share(sums):
    return {"share": ratio(sums["hits"], sums["rows"])}


def test_against_every_draw_there_is():
    # two clusters of 1 and 3 rows: of the 4 equally likely draws, one is (A, A), two are (A, B), one is (B, B)
    counts = {"hits": [1, 0, 0, 1], "rows": [1, 1, 1, 1]}
    rate = estimates(counts, ["a", "b", "b", "b"], share, resamples=4000)["share"]
    exact = [2 / 2, 2 / 4, 2 / 4, 2 / 6]
    assert rate.value == 0.5
    assert (rate.low, rate.high) == (2 / 6, 1.0)
    assert abs(rate.error - np.std(exact)) < 0.01


def test_repeated_rows_of_a_cluster_say_nothing_new():
    rng = np.random.default_rng(0)
    hits = rng.integers(0, 2, 60).tolist()
    once = estimates({"hits": hits, "rows": [1] * 60}, range(60), share)["share"]
    counts = {"hits": hits * 5, "rows": [1] * 300}
    clustered = estimates(counts, list(range(60)) * 5, share)["share"]
    alone = estimates(counts, range(300), share)["share"]
    assert clustered == once  # the same draws of the same clusters
    assert alone.error < 0.6 * once.error


def test_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        rates = rng.beta(2, 3, size=40)  # an image's own rate: rows of one image are alike
        hits = rng.binomial(6, rates)
        rate = estimates({"hits": hits, "rows": [6] * 40}, range(40), share, resamples=300, seed=trial)["share"]
        inside += rate.low <= 0.4 <= rate.high
    assert 0.9 <= inside / 200 <= 0.985


def test_what_cannot_be_said_is_nan():
    one = estimates({"hits": [1, 0], "rows": [1, 1]}, ["a", "a"], share)["share"]
    assert one.value == 0.5 and math.isnan(one.low) and math.isnan(one.error)
    none = estimates({"hits": [], "rows": []}, [], share)["share"]
    assert math.isnan(none.value) and math.isnan(none.low)
    # a draw of rows that hold nothing is left out, and the rest still have an interval
    some = estimates({"hits": [0, 1], "rows": [0, 1]}, ["a", "b"], share)["share"]
    assert (some.value, some.low, some.high) == (1.0, 1.0, 1.0)


def test_in_pieces_as_whole(monkeypatch):
    counts = {"hits": [1, 0, 1], "rows": [1, 1, 1]}
    whole = estimates(counts, "abc", share, resamples=50, seed=3)
    monkeypatch.setattr("mmalign.evaluation.intervals.AT_ONCE", 21)
    pieces = estimates(counts, "abc", share, resamples=50, seed=3)
    assert whole == pieces


@pytest.mark.parametrize(("more", "words"), [({"level": 1.0}, "level 1.0"), ({"resamples": 0}, "resamples 0")])
def test_odd_numbers(more, words):
    with pytest.raises(UserError, match=words):
        estimates({"hits": [1], "rows": [1]}, "a", share, **more)


def test_one_number_for_each_row():
    with pytest.raises(UserError, match="1 numbers of rows and 2 clusters"):
        estimates({"hits": [1, 0], "rows": [1]}, "ab", share)
