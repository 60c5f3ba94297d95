"""Feedback of one kind read as another."""

from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives.feedback import comparisons
from mmalign.types import Feedback, UserError

NAN = math.nan


def feedback_of(rewards: list[float], group: list[int], **more: torch.Tensor) -> Feedback:
    return Feedback(torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), **more)


def test_rewards_become_bradley_terry_s_probabilities() -> None:
    wins = comparisons.wins(feedback_of([1.0, 3.0, NAN, 5.0], [0, 0, 0, 1]), scale=2.0)
    assert float(wins[1, 0]) == pytest.approx(1 / (1 + math.exp(-1))) and float(wins[0, 1] + wins[1, 0]) == pytest.approx(1)
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0, 1] = known[1, 0] = True
    assert torch.equal(~wins.isnan(), known)
    with pytest.raises(UserError, match="scale: got 0"):
        comparisons.wins(feedback_of([1.0], [0]), scale=0)


def test_given_wins_go_before_rewards_and_missing_ones_out_of_the_mean() -> None:
    wins = torch.tensor([[NAN, 0.9, NAN], [0.1, NAN, 0.4], [NAN, NAN, NAN]], dtype=torch.float64)
    rate = comparisons.win_rate(feedback_of([0.0, 5.0, 1.0], [0, 0, 0], wins=wins))
    assert rate[:2].tolist() == pytest.approx([0.9, 0.25]) and rate[2].isnan()


def test_labels_are_those_given_or_follow_from_pairs_or_from_rewards() -> None:
    pairs = {"pairs": torch.tensor([[1, 0]]), "strength": torch.tensor([0.7]).double()}
    assert comparisons.labels(feedback_of([1.0, 0.0], [0, 0], labels=torch.tensor([0.25, NAN]).double(), **pairs))[0] == 0.25
    assert comparisons.labels(feedback_of([1.0, 0.0, 2.0], [0, 0, 0], **pairs))[:2].tolist() == pytest.approx([0.3, 0.7])
    labels = comparisons.labels(feedback_of([1.0, 2.0, 4.5, NAN, 0.1, 0.1, 3.0, 1.0, 1.0, 1.0], [0, 0, 0, 0, 1, 1, 2, 3, 3, 3]))
    assert labels[:3].tolist() == [0.0, 0.0, 1.0] and labels[3:].isnan().all()


def test_the_best_and_the_worst_of_a_group_are_a_pair() -> None:
    paired = comparisons.best_and_worst(feedback_of([1.0, 9.0, 5.0, NAN, 2.0, 2.0, 7.0], [0, 0, 0, 0, 1, 1, 2]))
    assert paired.pairs is not None and paired.pairs.tolist() == [[1, 0]] and paired.strength.tolist() == [1.0]  # type: ignore[union-attr]
    assert comparisons.best_and_worst(paired) is paired
    none = comparisons.best_and_worst(feedback_of([1.0], [0]))
    assert none.pairs is not None and none.pairs.shape == (0, 2)


def test_an_oracle_s_pair_has_its_own_probability() -> None:
    wins = torch.full((3, 3), NAN, dtype=torch.float64)
    wins[0, 1], wins[1, 0], wins[0, 2], wins[2, 0], wins[1, 2], wins[2, 1] = 0.2, 0.8, 0.3, 0.7, 0.6, 0.4
    paired = comparisons.best_and_worst(feedback_of([9.0, 0.0, 0.0], [0, 0, 0], wins=wins))
    assert paired.pairs.tolist() == [[1, 0]] and paired.strength.tolist() == [0.8]  # type: ignore[union-attr]


REF = {"ref": torch.tensor([False, False, True, True, False, False, True])}


def test_rows_across_samplers_meet_in_their_order_the_better_one_first() -> None:
    feedback = feedback_of([1.0, 5.0, 2.0, 2.0, 7.0, 7.0, 7.0], [0, 0, 0, 0, 1, 1, 1], drawn=REF)
    paired = comparisons.across(feedback, by="ref")
    assert paired.pairs.tolist() == [[2, 0], [1, 3], [4, 6]] and paired.strength.tolist() == [1.0, 1.0, 0.5]  # type: ignore[union-attr]
    assert comparisons.across(paired, by="ref") is paired
    others = {**REF, "half": torch.tensor([True, False, False, False, False, False, False])}
    beside = comparisons.across(feedback_of([1.0, 5.0, 2.0, 2.0, 7.0, 7.0, 7.0], [0, 0, 0, 0, 1, 1, 1], drawn=others), by="ref")
    assert beside.pairs.tolist() == [[1, 2], [4, 6]]  # type: ignore[union-attr]
    missing = comparisons.across(feedback_of([1.0, NAN, 2.0, 2.0, NAN, 7.0, 7.0], [0, 0, 0, 0, 1, 1, 1], drawn=REF), by="ref")
    assert [strength for strength in missing.strength.tolist() if strength == strength] == [1.0]  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"Feedback\.drawn: got \['ref'\], this method takes rows drawn by 'half'"):
        comparisons.across(feedback, by="half")


def test_rows_that_were_drawn_and_are_in_no_pair_stand_in_pairs_that_say_nothing() -> None:
    paired = comparisons.with_rest(feedback_of([1.0, 5.0, 2.0, 9.0, 7.0, 8.0, 7.5], [0, 0, 0, 0, 1, 1, 1], drawn=REF), by="ref")
    assert paired.pairs.tolist() == [[3, 0], [5, 4], [2, 6]]  # type: ignore[union-attr]
    assert paired.strength[:2].tolist() == [1.0, 1.0] and paired.strength[2:].isnan().all()  # type: ignore[index]
    odd = comparisons.with_rest(
        feedback_of([1.0, 5.0, 9.0, 2.0], [0, 0, 0, 0], drawn={"ref": torch.tensor([False, False, False, True])}), by="ref"
    )
    assert odd.pairs.tolist() == [[2, 0], [3, 1]]  # type: ignore[union-attr]


def test_own_rows_two_by_two() -> None:
    paired = comparisons.two_by_two(feedback_of([1.0, 5.0, 2.0, 2.0, 7.0, 7.0, 7.0], [0, 0, 0, 0, 1, 1, 1], drawn=REF))
    assert paired.pairs.tolist() == [[1, 0], [4, 5]] and paired.strength.tolist() == [1.0, 0.5]  # type: ignore[union-attr]
    assert comparisons.own(feedback_of([1.0, 2.0], [0, 0])).all()


def test_the_ranked_rows_of_a_group_meet_from_both_ends() -> None:
    feedback = feedback_of([1.0, 9.0, 5.0, NAN, 2.0, 7.0, 2.0, 2.0], [0, 0, 0, 0, 0, 1, 2, 2])
    paired = comparisons.best_with_worst(feedback, scale=2.0)
    assert paired.pairs.tolist() == [[1, 0], [2, 4], [6, 7]] and comparisons.best_with_worst(paired) is paired
    torch.testing.assert_close(paired.strength.logit(), torch.tensor([4.0, 1.5, 0.0]).double())
    wins = torch.full((3, 3), NAN, dtype=torch.float64)
    wins[0, 1], wins[1, 0], wins[0, 2], wins[2, 0], wins[1, 2], wins[2, 1] = 0.1, 0.9, 0.2, 0.8, 0.6, 0.4
    judged = comparisons.best_with_worst(feedback_of([9.0, 0.0, 0.0], [0, 0, 0], wins=wins))
    assert judged.pairs.tolist() == [[1, 0]] and judged.strength.tolist() == [0.9]  # by the judge, and the middle one is left over
    assert comparisons.best_with_worst(feedback_of([1.0], [0])).pairs.shape == (0, 2)
