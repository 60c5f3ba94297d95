"""Worse answers by rule: what changes, what stays, and that the same record is always changed alike."""

from __future__ import annotations

import json
import random
from itertools import islice

import pytest

import mmalign as mm
from mmalign.data import corruption
from mmalign.records import Pair, Thumb
from mmalign.types import UserError

OBJECTS = {"dog": ["cat", "leash"], "tree": ["apple"], "dining table": ["fork"]}


def each(way, *args, **more):
    return {way(*args, random.Random(seed), **more) for seed in range(40)}


def test_a_swapped_object_changes_everywhere_and_keeps_case_and_number():
    text = "Dogs play. A DOG barks; the dog-house is a hotdog."
    assert each(corruption.swapped, text, {"dog": ["fox"]}) == {"Foxes play. A FOX barks; the fox-house is a hotdog."}
    assert each(corruption.swapped, "A dog and a cat.", OBJECTS) == {"A leash and a cat."}  # the cat is there already
    assert each(corruption.swapped, "A dog, a cat, a leash.", OBJECTS) == {None} == each(corruption.swapped, "A bird.", OBJECTS)
    both = each(corruption.swapped, "A dog by a tree on the Dining table.", OBJECTS, count=9)
    assert both == {"A cat by a apple on the Fork.", "A leash by a apple on the Fork."}
    assert len(each(corruption.swapped, "A dog by a tree.", OBJECTS)) == 3  # one of two


def test_what_is_added_is_often_seen_beside_what_is_there_and_is_not_there():
    assert each(corruption.added, "A dog and a cat. ", OBJECTS) == {"A dog and a cat. There is also a leash nearby."}
    assert each(corruption.added, "Trees.", OBJECTS, template="An extra {object}, a {object}.") == {"Trees. An extra apple, an apple."}
    assert each(corruption.added, "A bird.", OBJECTS) == {None}


def test_numbers_move_a_little():
    assert each(corruption.renumbered, "Two of 10 men, 3.5 m, v2, 1,000") == {
        f"{word} of 10 men, 3.5 m, v2, 1,000" for word in ("One", "Three", "Four")
    } | {f"Two of {number} men, 3.5 m, v2, 1,000" for number in (8, 9, 11, 12)}
    assert each(corruption.renumbered, "one") == {"two", "three"} and each(corruption.renumbered, "twelve") == {"ten", "eleven"}
    assert each(corruption.renumbered, "A third man") == {None}


def test_one_sentence_is_left_out():
    assert each(corruption.shortened, "A dog. It is 3.5 m tall!  A cat") == {
        "It is 3.5 m tall!  A cat",
        "A dog. A cat",
        "A dog. It is 3.5 m tall!",
    }
    assert each(corruption.shortened, "A dog.") == {None}


def test_what_stands_together_is_counted():
    texts = ["A dog and a cat.", "Dogs, cats and a fork", "dog, fork", "a hotdog, a cat", "dog fork"]
    beside = corruption.cooccurrence(texts, ["dog", "cat", "fork", "bird"])
    assert beside == {"dog": ["fork", "cat"], "cat": ["dog"], "fork": ["dog"]}
    assert corruption.cooccurrence(texts, ["dog", "cat", "fork"], most=1, least=1) == {"dog": ["fork"], "cat": ["dog"], "fork": ["dog"]}


VOCABULARY = {"objects": OBJECTS, "attributes": {"red": ["blue"]}}
ASKED = [{"role": "user", "content": [{"type": "image", "path": "x.png"}, {"type": "text", "text": "What?"}]}]


def test_pairs_of_a_true_answer_and_what_was_made_of_it():
    records = [
        Pair(ASKED, "A red dog. It sits.", "A cow.", 0.9, "a"), Pair(ASKED, "A cow.", "A red tree. Yes.", 0.0, "b"),
        Thumb(ASKED, "A red dog. It runs.", 1.0, "c"), Thumb(ASKED, "A red dog. It lies.", 0.0, "d"),
        Pair(ASKED, "A bird", "A cow.", 1.0, "e"), Pair(ASKED, "A red dog", "x", 0.5, "f"),
    ]  # fmt: skip
    for pick in (records[:2] + records[4:], records[2:4]):
        worse = mm.data.corrupted(pick, vocabulary=VOCABULARY)
        pairs = list(islice(worse.stream(seed=0), 40))
        again = list(islice(mm.data.corrupted(pick, vocabulary=VOCABULARY).stream(seed=3), 40))
        assert {(pair.id, pair.second) for pair in pairs} == {(pair.id, pair.second) for pair in again}
        better = {"a": "A red dog. It sits.", "b": "A red tree. Yes.", "c": "A red dog. It runs."}
        assert all(pair.first == better[pair.id] != pair.second and pair.strength == 1.0 and pair.prompt == ASKED for pair in pairs)
        assert [pair.position for pair in pairs] == sorted({pair.position for pair in pairs})
        resumed = next(worse.stream(seed=0, start=pairs[6].position))
        assert resumed == pairs[7]
    assert worse.broken == {} and mm.data.corrupted(records[4:5] + records[:1], vocabulary=VOCABULARY).broken.keys() <= {"e"}


def test_more_changes_and_other_seeds_are_other_answers(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(VOCABULARY))
    records = [Pair(ASKED, "Two red dogs. They sit.", "A cow.", id=str(number)) for number in range(30)]

    def seconds(**more):
        return [
            pair.second for pair in islice(mm.data.corrupted(records, vocabulary=str(tmp_path / "words.json"), **more).stream(seed=0), 30)
        ]

    assert set(seconds(ways=["attribute"])) == {"Two blue dogs. They sit."}
    assert len(set(seconds())) > 5 and seconds() != seconds(seed=1)
    assert set(seconds(ways=["attribute", "shorten"], changes=2)) <= {"Two blue dogs.", "They sit."} | {"Two red dogs."}


def test_mistakes(tmp_path):
    records = [Pair("p", "A dog.", "x")]
    for wrong, line in (
        ({"ways": ["rhyme"]}, "ways: got "), ({"ways": []}, "records.ways: got 'none'"), ({"changes": 0}, "changes: got 0"),
        ({"vocabulary": {"verbs": {}}}, "vocabulary: "), ({"vocabulary": {"objects": {"a": []}}}, "vocabulary.objects: takes"),
        ({"vocabulary": "gone.json"}, "no such file: gone.json"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            mm.data.corrupted(records, **{"vocabulary": VOCABULARY, **wrong})
    with pytest.raises(UserError, match="nothing can be changed in 1000 records"):
        mm.data.corrupted([Pair("p", "A bird", "x")], vocabulary=VOCABULARY)
