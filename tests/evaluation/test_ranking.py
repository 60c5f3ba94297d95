"""Ranking accuracies against the losses that they follow from."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import mmalign as mm
from mmalign.types import UserError


def values(*tables, **more):
    return {name: value.value for name, value in mm.evaluation.ranking_accuracies(*tables, resamples=10, **more).values.items()}


def test_a_pair_is_ranked_rightly_exactly_where_its_loss_is_low_enough():
    rng = np.random.default_rng(0)
    beta, policy, reference = 0.3, rng.normal(size=(200, 2)) * 5, rng.normal(size=(200, 2)) * 5
    c = reference[:, 1] - reference[:, 0]
    loss = np.logaddexp(0, -beta * ((policy[:, 0] - reference[:, 0]) - (policy[:, 1] - reference[:, 1])))
    low_enough = loss <= np.logaddexp(0, -beta * c)
    found = values(policy, reference, beta=beta)
    assert found["raw"] == pytest.approx(low_enough.mean())
    assert found["flipped"] == pytest.approx(low_enough[c > 0].mean())
    assert found["flip_loss"] == pytest.approx(np.logaddexp(0, -beta * c)[c > 0].mean())
    assert found["implicit"] == pytest.approx((policy[:, 0] - policy[:, 1] > reference[:, 0] - reference[:, 1]).mean())
    assert found["reference"] == pytest.approx((c < 0).mean()) and found["idealised"] == 1


def test_the_ideal_is_where_the_loss_is_least():
    beta, alpha, c = 0.5, np.array([0.6, 0.9, 0.9, 0.99]), np.array([2.0, 3.0, 6.0, -1.0])
    rightly = []
    for share, behind in zip(alpha, c, strict=True):  # the margin d of log-ratios that the expected DPO loss asks for
        least = minimize_scalar(
            lambda d, share=share: share * np.logaddexp(0, -beta * d) + (1 - share) * np.logaddexp(0, beta * d),
            bounds=(-60, 60), method="bounded", options={"xatol": 1e-8},
        )  # fmt: skip
        rightly.append(least.x > behind)
    reference = np.column_stack([np.zeros(4), c])
    assert rightly == [False, True, False, True]
    assert values(reference, reference, beta=beta, agreed=alpha.tolist())["idealised"] == np.mean(rightly)


def test_lengths_ties_and_what_is_missing():
    scores = mm.evaluation.ranking_accuracies(
        [[-10.0, -4.0], [-3.0, -3.0], [math.nan, -1.0]], [[-4.0, -4.0], [-3.0, -5.0], [-1.0, -1.0]],
        lengths=[[10, 2], [3, 3], [1, 1]], resamples=10,
    )  # fmt: skip
    found = {name: value.value for name, value in scores.values.items()}
    assert (
        found["raw"] == 0.25 and found["raw/per_token"] == 0.75 and scores.counts == {"pairs": 3, "missing": 1} and scores.rows[2] is None
    )
    assert math.isnan(found["flipped"])  # the reference ranks none wrongly
    with pytest.raises(UserError, match=r"agreed: got 0.5, takes more than 0.5"):
        mm.evaluation.ranking_accuracies([[1.0, 2.0]], [[1.0, 2.0]], agreed=[0.5])
    with pytest.raises(UserError, match=r"takes \[pairs, 2\] of both"):
        mm.evaluation.ranking_accuracies([[1.0, 2.0]], [[1.0]])
