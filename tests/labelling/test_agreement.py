"""How far people agree: counted by hand, and beside a published example."""

from __future__ import annotations

import math

import pytest

from mmalign.labelling.agreement import agreement
from mmalign.labelling.judgements import Judgement

FIRST, SECOND, TIE = ((0,), (1,)), ((1,), (0,)), ((0, 1),)


def standing(**words):
    """Annotator -> what they said of the items 0, 1, ...; None: nothing."""
    return {(str(n), who): Judgement(str(n), who, said) for who, all_ in words.items() for n, said in enumerate(all_) if said is not None}


def test_nobody_shares_anything():
    told = agreement(standing(ann=[FIRST, None], bob=[None, SECOND]))
    assert told.compared == 0 and math.isnan(told.same) and math.isnan(told.alpha)


def test_everybody_agrees():
    told = agreement(standing(ann=[FIRST, SECOND, TIE], bob=[FIRST, SECOND, TIE], eve=[FIRST, None, TIE]))
    assert told == (3, 1.0, 1.0)


def test_all_say_the_same_always_and_nothing_could_differ():
    told = agreement(standing(ann=[FIRST, FIRST], bob=[FIRST, FIRST]))
    assert told.same == 1.0 and math.isnan(told.alpha)


def test_shares_are_of_any_two_words():
    told = agreement(standing(ann=[FIRST], bob=[FIRST], eve=[SECOND]))
    assert told.compared == 1 and told.same == pytest.approx(1 / 3)


def test_alpha_of_two_values_by_hand():
    """Two people, four items, one disagreement: 1 - 7 * 2 / (3 * 5) for nominal values, which two values at any level are."""
    told = agreement(standing(ann=[FIRST, FIRST, SECOND, SECOND], bob=[FIRST, SECOND, SECOND, SECOND]))
    assert told.same == 0.75 and told.alpha == pytest.approx(1 - 7 * 2 / (2 * 3 * 5))


def test_a_tie_is_nearer_than_the_opposite():
    near = agreement(standing(ann=[FIRST, SECOND, TIE], bob=[TIE, SECOND, TIE]))
    far = agreement(standing(ann=[FIRST, SECOND, TIE], bob=[SECOND, SECOND, TIE]))
    assert near.same == far.same and near.alpha > far.alpha


def test_a_skipped_item_says_nothing_and_a_ranking_is_its_pairs():
    told = agreement({("0", "ann"): Judgement("0", "ann"), ("0", "bob"): Judgement("0", "bob", FIRST)})
    assert told.compared == 0
    three = agreement(
        {("0", who): Judgement("0", who, ranking) for who, ranking in (("ann", ((0,), (1,), (2,))), ("bob", ((0,), (2,), (1,))))}
    )
    assert three.compared == 3 and three.same == pytest.approx(2 / 3)
