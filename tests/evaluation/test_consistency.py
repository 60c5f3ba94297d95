"""Rewards that do not read, and annotators with and without principles, counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mmalign as mm
from mmalign.types import UserError

NAN = math.nan


def values(scores):
    return {name: value.value for name, value in scores.values.items()}


def test_contrast_instructions():
    reads, only_answers, only_questions = [[2.0, 1.0], [0.0, 3.0]], [[5.0, 1.0], [5.0, 1.0]], [[5.0, 5.0], [1.0, 1.0]]
    assert values(mm.evaluation.contrast_consistency([reads], resamples=10)) == {"c_res": 1, "c_ins": 1, "c_all": 1}
    assert values(mm.evaluation.contrast_consistency([only_answers], resamples=10)) == {"c_res": 0.5, "c_ins": 0.5, "c_all": 0}
    assert values(mm.evaluation.contrast_consistency([only_questions], resamples=10)) == {"c_res": 0.5, "c_ins": 0.5, "c_all": 0}
    likes_one = [[3.0, 1.0], [2.5, 2.0]]  # of question 2 the other's answer, of answer 1 its own question, of answer 2 too
    found = mm.evaluation.contrast_consistency([likes_one, [[1.0, NAN], [0.0, 1.0]]], resamples=10)
    assert values(found) == {"c_res": 0.5, "c_ins": 1, "c_all": 0} and found.counts == {"pairs": 2, "missing": 1}
    with pytest.raises(UserError, match=r"takes \[pairs, 2, 2\]"):
        mm.evaluation.contrast_consistency([[1.0, 2.0]])


def test_fusion_with_neighbours():
    fused = mm.evaluation.fused_rewards([1.0, 2.0], [[1.0, 0.5, -1.0], [0.0, 0.0, 0.0]], [4.0, NAN, 9.0], count=2, weight=2.0)
    assert fused.tolist() == [(1 + 2 * 4) / 3, 2.0]  # the one that is missing and the one that is unlike are no neighbours
    own = mm.evaluation.fused_rewards([0.0], [[1.0, 1.0, 0.2]], [[1.0, 3.0, 100.0]], count=2)
    assert own.tolist() == [4 / 3]
    with pytest.raises(UserError, match="fused rewards: got 2 scores"):
        mm.evaluation.fused_rewards([1.0, 2.0], [[1.0]], [1.0])


def test_principles():
    principles = {"kind": [1, 1, 0, -1, 1, 0], "true": [1, -1, 0, 0, -1, NAN]}
    found = mm.evaluation.principle_statistics(principles, [1, 1, -1, 1, -1, 1], resamples=10)
    assert found.counts == {"pairs": 6, "missing": 1}
    assert values(found) == {
        "consensus": 0.4, "conflict": 0.4, "indifference": 0.2, "arbitrariness": 0.5, "agreement/kind": 0.5, "agreement/true": 2 / 3,
        "supremacy/kind over true": 0.5,
    }  # fmt: skip
    with pytest.raises(UserError, match="got the preference 2, takes 1, -1, 0"):
        mm.evaluation.principle_statistics({"a": [2]}, [1])
    with pytest.raises(UserError, match="takes one of each"):
        mm.evaluation.principle_statistics({"a": [1, 1]}, [1])


def test_length_ratio():
    found = mm.evaluation.length_ratio([10, 2, NAN], [4, 4, 1], resamples=50)
    assert values(found) == {"length_ratio": 1.5, "longer": 0.5} and found.counts["missing"] == 1
    assert np.isfinite(found.values["length_ratio"].low)
