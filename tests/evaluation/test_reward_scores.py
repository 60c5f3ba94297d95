"""Scores of a reward as numbers, against counts by hand and against the published rules in straight lines."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mmalign as mm
from mmalign.evaluation.reward_scores import tie_threshold
from mmalign.types import UserError

NAN = math.nan


def values(scores):
    return {name: value.value for name, value in scores.values.items()}


def test_the_best_of_several():
    table = [[3, 1, 2, 0], [1, 1, 0, 0], [0, 5, 1, 1], [NAN, 1, 1, 1], [2, 2, 2, 2]]
    scores = mm.evaluation.best_scores(table, subsets=["math", "math", "safety", "safety", "safety"], resamples=50)
    assert values(scores) == {"accuracy": (1 + 0.5 + 0 + 0.25) / 4, "accuracy/math": 0.75, "accuracy/safety": 0.125}
    assert scores.counts == {"comparisons": 5, "missing": 1, "ties": 2} and scores.published == {"accuracy": 0.25}
    assert scores.rows[0] == {"right": 1.0, "margin": 1.0} and scores.rows[3] is None
    assert scores.values["accuracy"].low < scores.values["accuracy"].value < scores.values["accuracy"].high
    others = mm.evaluation.best_scores([[1, 2], [2, 1]], right=[1, 1])
    assert values(others)["accuracy"] == 0.5


def test_sections_weigh_subsets_and_leave_out_what_is_not_there():
    sections = {"chat": {"easy": 1, "hard": 3}, "code": {"cpp": 1}, "none": {"absent": 1}}
    scores = mm.evaluation.best_scores([[1, 0], [0, 1], [1, 0]], subsets=["easy", "hard", "cpp"], sections=sections, resamples=20)
    found = values(scores)
    assert found["chat"] == 0.25 and found["code"] == 1.0 and found["sections"] == 0.625 and "none" not in found


def published_with_ties(gaps, labels, epsilon):
    right = [abs(gap) <= epsilon if label == 0 else abs(gap) > epsilon and gap * label > 0 for gap, label in zip(gaps, labels, strict=True)]
    return sum(right) / len(right)


def test_pairs_with_ties_take_the_best_of_all_thresholds():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, 60)
    gaps = np.round(labels + rng.normal(size=60), 1)  # equal differences among them
    scores = mm.evaluation.pair_scores(gaps.tolist(), labels.tolist(), resamples=20)
    every = {epsilon: published_with_ties(gaps, labels, epsilon) for epsilon in (-1.0, *np.abs(gaps))}
    found = values(scores)
    assert found["accuracy_with_ties"] == pytest.approx(max(every.values()))
    assert every[found["threshold"]] == pytest.approx(max(every.values()))
    decided = labels != 0
    assert found["accuracy"] == pytest.approx(np.where(gaps == 0, 0.5, np.sign(gaps) == labels)[decided].mean())
    assert scores.published["accuracy"] == pytest.approx((np.sign(gaps) == labels)[decided].mean())
    assert scores.counts["ties"] == int((labels == 0).sum())


def test_a_threshold_from_elsewhere_and_what_is_missing():
    scores = mm.evaluation.pair_scores([0.5, 0.5, NAN, 1.0, 2.0], [1, 0, 1, NAN, -1], threshold=0.5, resamples=20)
    assert values(scores) == {"accuracy": 0.5, "accuracy_with_ties": pytest.approx(1 / 3), "threshold": 0.5}
    assert scores.counts == {"comparisons": 5, "missing": 1, "unjudged": 1, "ties": 1}
    assert [row is None for row in scores.rows] == [False, False, True, True, False]
    assert math.isnan(tie_threshold([NAN], [1]))


def oracle_of_ties(rows):
    """``process_single_model`` of RewardBench 2's code, in straight lines."""
    stats = {}
    for kind, prompt, right, scores in rows:
        good, bad = scores[:right], scores[right:]
        stats[kind, prompt] = (min(good) > max(bad), max(good) - min(good), min(good) - max(bad))
    refs = [stats[key] for key in stats if key[0] == "ref"]
    tied = [stats[key] for key in stats if key[0] == "tied"]
    both = sorted({prompt for kind, prompt in stats if kind == "ref"} & {prompt for kind, prompt in stats if kind == "tied"})
    spread = np.array([stats["tied", prompt][1] for prompt in both])
    of_tied = np.array([stats["tied", prompt][2] for prompt in both])
    of_ref = np.array([stats["ref", prompt][2] for prompt in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        last = np.nan_to_num(np.tanh(np.minimum(of_ref, of_tied) / spread - 1), nan=0.0)
    return (
        0.3 * np.mean([one[0] for one in tied]) + 0.3 * np.mean([one[0] for one in refs]) + 0.2 * np.mean(of_tied > spread)
        + 0.2 * np.mean(np.minimum(of_ref, of_tied) > spread) + 0.01 * np.mean(last)
    )  # fmt: skip


def test_the_subset_of_ties_is_the_published_score():
    rng = np.random.default_rng(1)
    rows = [("ref", n, 1, rng.normal(size=4) + np.array([1.5, 0, 0, 0])) for n in range(7)]
    rows += [("tied", n, 3, rng.normal(size=6) * 0.5 + np.array([2, 2, 2, 0, 0, 0])) for n in range(1, 9)]
    rows.append(("ref", 20, 1, np.array([1.0, 1.0])))
    rows.append(("tied", 20, 2, np.array([1.0, 1.0, 1.0])))  # 0 / 0 in the last term
    rows.append(("tied", 21, 2, np.array([2.0, 2.0, 1.0])))
    rows.append(("ref", 21, 1, np.array([2.0, 1.0])))  # 1 / 0
    kinds, prompts, right, scores = zip(*rows, strict=True)
    found = mm.evaluation.tied_answer_scores(
        [list(row) for row in scores], list(right), kinds=list(kinds), prompts=list(prompts), resamples=20
    )
    expected = oracle_of_ties([(kind, prompt, count, list(row)) for kind, prompt, count, row in rows])
    assert found.values["ties"].value == pytest.approx(expected, abs=1e-12)
    missing = mm.evaluation.tied_answer_scores([[1, 0], [NAN, 0]], [1, 1], kinds=["ref", "tied"], prompts=[1, 1], resamples=20)
    assert missing.counts["missing"] == 1 and math.isnan(missing.values["ties"].value) and missing.values["ties/ref_accuracy"].value == 1


def test_what_is_refused():
    with pytest.raises(UserError, match="got 1 scores of which number 0 is right"):
        mm.evaluation.best_scores([[1.0]])
    with pytest.raises(UserError, match="got 1 scores, 2 right, 1 subsets, 1 prompts; takes one of each"):
        mm.evaluation.best_scores([[1.0, 2.0]], right=[0, 1])
    with pytest.raises(UserError, match=r"preferred: got 2, takes 1 for the first"):
        mm.evaluation.pair_scores([1.0], [2])
    with pytest.raises(UserError, match=r"threshold: got -1"):
        mm.evaluation.pair_scores([1.0], [1], threshold=-1.0)
    with pytest.raises(UserError, match=r"kinds: got 'ref' of prompt 1 twice"):
        mm.evaluation.tied_answer_scores([[1, 0], [1, 0]], [1, 1], kinds=["ref", "ref"], prompts=[1, 1])
    with pytest.raises(UserError, match=r"right: got 2 of 2 answers"):
        mm.evaluation.tied_answer_scores([[1, 0]], [2], kinds=["ref"], prompts=[1])
