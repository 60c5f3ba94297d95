"""The best of n, against every subset counted one by one."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

import mmalign as mm
from mmalign.types import UserError


def enumerated(chooses, judged, count):
    """The mean over all subsets, ties shared."""
    totals = []
    for subset in combinations(range(len(chooses)), count):
        best = max(chooses[place] for place in subset)
        ties = [judged[place] for place in subset if chooses[place] == best]
        totals.append(sum(ties) / len(ties))
    return sum(totals) / len(totals)


@pytest.mark.parametrize("levels", [3, 100])
def test_it_is_the_mean_over_all_subsets(levels):
    rng = np.random.default_rng(levels)
    chooses, judged = rng.integers(0, levels, 9).astype(float), rng.normal(size=9)
    best = mm.evaluation.best_of_n(chooses, judged, range(1, 10))
    expected = [enumerated(chooses.tolist(), judged.tolist(), count) for count in range(1, 10)]
    assert best == pytest.approx(expected, abs=1e-12)


def test_missing_scores_are_no_samples_and_too_few_are_nan():
    nan = math.nan
    best = mm.evaluation.best_of_n([1, 2, nan, 4], [10, 20, 30, nan], [1, 2, 3])
    assert best[:2].tolist() == [15, 20] and math.isnan(best[2])
    assert np.isnan(mm.evaluation.best_of_n([nan], [1.0], [1])).all()


def test_many_samples_are_whole_numbers():
    scores = np.arange(4000.0)
    best = mm.evaluation.best_of_n(scores, scores, [2000])
    assert best[0] == pytest.approx(2000 * 4001 / 2001 - 1)  # the mean of the largest of n of 1..N is n (N + 1) / (n + 1)


def test_curve_over_prompts():
    chooses, judged = [[1, 2, 3], [1, 2], [3.0, 1.0]], [[0, 0, 3], [1, 2], [0.0, 4.0]]
    curve = mm.evaluation.best_of_n_curve(chooses, judged, [1, 2, 3], resamples=50)
    assert [point.value for point in curve] == [pytest.approx((1 + 1.5 + 2) / 3), pytest.approx((2 + 2 + 0) / 3), 3.0]
    assert curve[0].low < curve[0].value < curve[0].high and math.isnan(curve[2].low)  # one prompt has three samples: no interval
    joint = mm.evaluation.best_of_n_curve(chooses, judged, [1], prompts=["a", "a", "a"])
    assert math.isnan(joint[0].low)


def test_bound_on_the_divergence():
    # n = 2 of two equally likely outputs that differ in score: 3/4 and 1/4; never further than the bound
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert mm.evaluation.best_of_n_kl(1) == 0 and exact < mm.evaluation.best_of_n_kl(2) == pytest.approx(math.log(2) - 0.5)


def test_what_is_refused():
    with pytest.raises(UserError, match=r"got n = 0, takes 1 or more"):
        mm.evaluation.best_of_n([1.0], [1.0], [0])
    with pytest.raises(UserError, match=r"got 2 scores that choose and 1 that judge"):
        mm.evaluation.best_of_n([1.0, 2.0], [1.0], [1])
    with pytest.raises(UserError, match=r"got 1 prompts that choose, 2 that judge, 1 names"):
        mm.evaluation.best_of_n_curve([[1.0]], [[1.0], [2.0]], [1])
    with pytest.raises(UserError, match="takes 1 or more"):
        mm.evaluation.best_of_n_kl(0)
