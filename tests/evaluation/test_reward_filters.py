"""The R2 of reward against true score on what a filter keeps: against drawn rows, and where the extremes alone can be trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import linregress

import mmalign as mm
from mmalign.evaluation.reward_filters import filter_r2
from mmalign.types import UserError

NAN = math.nan


def values(found):
    return {name: value.value for name, value in found.values.items()}


def some(prompts=12, each=5):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=prompts * each)
    return scores + rng.normal(size=len(scores)), scores, np.repeat(np.arange(prompts), each)


def kept(rewards, prompts, keep):
    """Rows as often as the filter draws them of each prompt, in as few draws as give whole numbers."""
    rows = []
    for prompt in np.unique(prompts):
        own = sorted(np.flatnonzero(prompts == prompt), key=lambda row: rewards[row])
        rows += {"none": own, "best_worst": [own[0], own[-1]], "best_random": [*own[:-1], *[own[-1]] * (len(own) - 1)]}[keep]
    return rows


@pytest.mark.parametrize("keep", ["none", "best_worst", "best_random"])
def test_it_is_the_regression_on_the_rows_that_the_filter_draws(keep):
    rewards, scores, prompts = some()
    rows = kept(rewards, prompts, keep)
    wanted = linregress(rewards[rows], scores[rows]).rvalue ** 2
    assert values(filter_r2(rewards, scores, prompts, resamples=10))[keep] == pytest.approx(wanted, rel=1e-9)


def test_power_weighs_by_the_size_of_the_reward_within_its_prompt():
    rewards, scores, prompts = some()
    weight = np.abs(rewards) ** 1.5
    weight *= np.array([5 / weight[prompts == prompt].sum() for prompt in prompts])
    moments = np.cov(rewards, scores, aweights=weight, ddof=0)
    found = values(filter_r2(rewards, scores, prompts, power=1.5, resamples=10))["power"]
    assert found == pytest.approx(moments[0, 1] ** 2 / (moments[0, 0] * moments[1, 1]), rel=1e-9)
    assert found != pytest.approx(values(filter_r2(rewards, scores, prompts, resamples=10))["power"], rel=1e-3)


def test_where_a_reward_knows_only_the_best_and_the_worst_that_filter_is_chosen():
    rng = np.random.default_rng(1)
    rewards = np.tile([-2.0, -0.1, 0.0, 0.1, 2.0], 40)
    scores = np.where(np.abs(rewards) > 1, np.sign(rewards), rng.choice([-1.0, 1.0], size=200))
    found = mm.evaluation.filter_r2(rewards, scores, np.repeat(np.arange(40), 5))
    assert max(values(found), key=values(found).get) == "best_worst" and values(found)["best_worst"] == pytest.approx(1)
    assert found.values["none"].high < 0.9


def test_neither_a_shift_nor_a_scale_moves_it():
    rewards, scores, prompts = some()
    plain, moved = (values(filter_r2(*columns, prompts, resamples=10)) for columns in ((rewards, scores), (rewards, 1e6 - 3 * scores)))
    assert moved == pytest.approx(plain, rel=1e-6)


def test_what_is_missing_and_what_does_not_vary():
    found = filter_r2([0.0, 1.0, NAN, 2.0, 0.5], [0.0, 1.0, 5.0, 3.0, NAN], ["a", "a", "a", "b", "b"], resamples=10)
    assert found.counts == {"rows": 5, "missing": 2} and found.rows[2] is None and found.rows[4] is None
    assert found.rows[0] == {"none": 1.0, "best_worst": 1.0, "best_random": 1.0, "power": 0.0}
    assert found.rows[3]["best_worst"] == 1.0  # best of two: the row without a score was there to be chosen
    assert all(math.isnan(value) for value in values(filter_r2([0.1] * 6, range(6), "aaabbb", resamples=10)).values())
    assert all(math.isnan(value) for value in values(filter_r2(range(6), [0.3] * 6, "aaabbb", resamples=10)).values())
    alike = values(filter_r2([0.0, 1.0, 2.0] * 7, [0.3, 0.7, 0.3] * 7, [row // 3 for row in range(21)], resamples=10))
    assert math.isnan(alike["best_worst"]) and alike["none"] == pytest.approx(0, abs=1e-12)
    assert all(math.isnan(value) for value in values(filter_r2([], [], [], resamples=10)).values())
    with pytest.raises(UserError, match="3 rewards, 2 scores and 3 prompts"):
        filter_r2([1, 2, 3], [1, 2], "abc")
