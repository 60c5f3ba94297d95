"""AMBER's numbers by hand, on annotations in its own format."""

from __future__ import annotations

import math

import pytest

from mmalign.evaluation.amber_scores import Vocabulary, amber_answers, amber_descriptions
from mmalign.types import UserError

RELATION = {
    "forest": ["tree", "leave"], "tree": ["forest", "leave"], "ship": ["boat"], "person": ["man"], "sky": [], "dog": [], "sun": [],
    "bird": ["bill"],
}  # fmt: skip
WORDS = Vocabulary(RELATION, {"picture", "sky"})


def one(nouns, truth, expected=(), **more):
    return amber_descriptions([nouns], [truth], [expected], WORDS, **more)


def test_by_hand():
    scores = amber_descriptions(
        [["boat", "dog", "picture", "castle", "man", "man"], ["tree"], None],
        [["ship", "sky", "person"], ["forest"], ["dog"]],
        [["dog", "sun"], ["bird"], []],
        WORDS,
    )
    # first: boat covers the ship, man (twice) the person; dog is invented, and expected; picture and castle are no objects of the file
    first, second, third = scores.rows
    assert first["words"] == ["boat", "dog", "man", "man"] and first["invented"] == ["dog"]
    assert first["covered"] == [0, 2] and first["believed"] == [0]
    assert second["covered"] == [0] and second["invented"] == []
    assert third is None
    values = {name: interval.value for name, interval in scores.values.items()}
    assert values == pytest.approx({"chair": 1 / 5, "cover": 3 / 4, "hal": 1 / 2, "cog": 1 / 3})
    assert scores.counts == {"answers": 3, "missing": 1}
    assert scores.published == {"CHAIR": 20.0, "Cover": 75.0, "Hal": 50.0, "Cog": 33.3}


def test_the_scripts_denominators_begin_at_a_thousandth():
    nothing = one([], ["ship"])
    assert math.isnan(nothing.values["chair"].value) and nothing.published["CHAIR"] == 0.0
    assert nothing.published["Hal"] == 0.1  # 100 - 1 / 1.001 * 100: one description without an invention is not quite all of them
    assert nothing.values["hal"].value == 0.0
    assert one(["ship"], ["ship"]).published["Cover"] == 99.9  # 1 / 1.001


def test_association_comes_before_a_name():
    # tree is an object here, but the forest's list is looked through first; with both said, the tree's own list covers it
    assert one(["tree"], ["forest", "tree"]).rows[0]["covered"] == [0]
    assert one(["tree", "forest"], ["forest", "tree"]).rows[0]["covered"] == [0, 1]
    # an object that is listed twice can be covered once
    assert one(["ship", "ship"], ["ship", "ship"]).rows[0]["covered"] == [0]


def test_safe_words_are_in_the_denominator_and_cover_nothing():
    scores = one(["sky", "dog"], ["sky"])
    assert scores.rows[0]["covered"] == [] and scores.rows[0]["invented"] == ["dog"]
    assert scores.values["chair"].value == 1 / 2


def test_likeness_forgives_an_invention_but_not_a_belief():
    alike = lambda one, other: one == other or {one, other} == {"dog", "bird"}  # noqa: E731
    strict = one(["dog"], ["bird"], ["dog"])
    assert strict.rows[0]["invented"] == ["dog"] and strict.rows[0]["believed"] == [0]
    lenient = one(["dog"], ["bird"], ["dog"], alike=alike)
    assert lenient.rows[0]["invented"] == [] and lenient.rows[0]["covered"] == [0]
    assert lenient.rows[0]["believed"] == [0]  # counted in Cog all the same
    # near an expected invention: counted there, and an invention too
    near = one(["dog"], ["sun"], ["bird"], alike=alike)
    assert near.rows[0]["believed"] == [0] and near.rows[0]["invented"] == ["dog"]


def test_an_object_without_a_line():
    with pytest.raises(UserError, match="'dragon'"):
        one(["dog"], ["dragon"])


KINDS = [
    "discriminative-hallucination", "discriminative-attribute-state", "discriminative-attribute-number", "discriminative-relation",
]  # fmt: skip


def test_no_is_the_positive_class_and_letters_count():
    answers = ["No", "No", "Yes", "Yes.", "no", "Yes", None]
    truth = ["no", "yes", "no", "yes", "no", "yes", "no"]
    scores = amber_answers(answers, truth, ["discriminative-hallucination"] * 7)
    # right: 1st, 6th. "Yes." and "no" are wrong, and "no" is not said
    values = {name: scores.values[name].value for name in ("accuracy", "precision", "recall", "f1")}
    assert values == pytest.approx({"accuracy": 2 / 6, "precision": 1 / 2, "recall": 1 / 3, "f1": 0.4})
    assert scores.counts == {"answers": 7, "missing": 1, "unparsed": 2}


def test_published_f1_is_made_of_rounded_numbers():
    scores = amber_answers(["No", "No", "Yes"], ["no", "no", "no"], ["discriminative-hallucination"] * 3)
    # precision round(100 * 2 / 2.001, 1) = 100.0, recall round(100 * 2 / 3.001, 1) = 66.6
    assert (scores.published["Precision"], scores.published["Recall"]) == (100.0, 66.6)
    assert scores.published["F1"] == 79.9  # of all: 2 * .666 / (1.666 + .0001) = .79947
    assert scores.published["existence/F1"] == 79.9  # .001 there: .79904
    half = amber_answers(["No", "No", "Yes", "Yes"], ["no"] * 4, ["discriminative-hallucination"] * 4)
    # precision 100.0, recall 50.0: 1 / (1.5 + .0001) = .66662 of all, 1 / (1.5 + .001) = .66622 of existence
    assert (half.published["F1"], half.published["existence/F1"]) == (66.7, 66.6)
    assert half.values["f1"].value == half.values["existence/f1"].value == 2 / 3


def test_kinds():
    scores = amber_answers(["No", "Yes", "No", "No"], ["no", "no", "no", "yes"], KINDS)
    assert scores.values["attribute/accuracy"].value == 1 / 2  # state and number together
    assert scores.values["state/recall"].value == 0.0 and scores.values["number/recall"].value == 1.0
    assert scores.values["relation/precision"].value == 0.0
    assert "action/accuracy" not in scores.values
