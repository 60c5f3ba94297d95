from __future__ import annotations

import json

import pytest

from mmalign.evaluation.objects import coco_truth, marked, mentions, plurals, synonyms
from mmalign.types import UserError

LINES = """\
person, man, woman, child, children, baby, skier
dog, puppy
cat
chair, seat, stool
toilet
elephant
train, locomotive
airplane, jet, plane
fire hydrant, hydrant
wine glass
tie, bow, bow tie
knife, knive
mouse
skis, ski
motorcycle,  motor bike
dining table, table, coffee table
cell phone, phone, iPhone
bus
sheep
"""


@pytest.fixture
def known(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text(LINES)
    return synonyms(file)


def classes(text, known):
    return [mention.object for mention in mentions(text, known)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("A man and two women with their puppies.", ["person", "person", "dog"]),
        ("Children, mice and knives; sheep on buses!", ["person", "mouse", "knife", "sheep", "bus"]),
        ("A fire hydrant and a hydrant", ["fire hydrant", "fire hydrant"]),
        ("Two fire hydrants", ["fire hydrant"]),
        ("fire, hydrant", ["fire hydrant"]),  # the comma parts them, and hydrant alone is one
        ("a baby elephant", ["elephant"]),  # no person
        ("a baby with an elephant", ["person", "elephant"]),
        ("an adult dog on a passenger train", ["dog", "train"]),
        ("the toilet seat", ["toilet"]),
        ("the seat of the toilet and a chair", ["toilet", "chair"]),  # no chair for the seat
        ("a seat and a stool", ["chair", "chair"]),
        ("a bow tie and a bow", ["tie", "tie"]),
        ("wine glasses", ["wine glass"]),
        ("glasses of wine", []),
        ("a skier on skis", ["person", "skis"]),
        ("a motor bike", ["motorcycle"]),  # the table's second space is stripped
        ("a coffee table", ["dining table"]),  # by table alone: coffee table is no double word there
        ("my iPhone", []),  # the table's capital never matches
        ("DOGS and Dogs' bowls, the dog's bone", ["dog", "dog", "dog"]),
        ("a hot-dog, cat/dog, **dog**", ["dog"]),  # one word with its hyphen or slash
        ("doghouse, scatter", []),
        ("", []),
    ],
)
def test_captions(text, names, known):
    assert classes(text, known) == names


def test_places(known):
    text = "Two fire hydrants and a cat."
    spans = mentions(text, known)
    assert [text[mention.start : mention.end] for mention in spans] == ["fire hydrants", "cat"]
    assert marked(spans, {"cat"}) == [(4, 17, False), (24, 27, True)]


def test_a_bow_tie_is_known_as_a_tie(known):
    assert [mention.word for mention in mentions("a bow tie, a toilet seat, a baby dog", known)] == ["tie", "toilet", "dog"]


def test_pieces(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text(LINES + "oven, stove top oven\n")
    text = "a coffee table, a home plate by the train track, a dining table"
    assert classes(text, synonyms(file)) == ["dining table", "train", "dining table"]
    assert classes(text, synonyms(file, pieces="rlhf_v")) == ["dining table", "dining table"]  # the track is no train
    words = [mention.word for mention in mentions(text, synonyms(file, pieces="rlhf_v"))]
    assert words == ["coffee table", "dining table"]
    with pytest.raises(UserError, match="rohrbach or rlhf_v"):
        synonyms(file, pieces="nltk")


def test_a_word_of_two_classes_belongs_to_the_last(tmp_path):
    file = tmp_path / "synonyms.txt"
    file.write_text("dog, hound\ncat, hound\n")
    assert classes("a hound", synonyms(file)) == ["cat"]


def test_plurals():
    words = ["dog", "bench", "bus", "box", "puppy", "monkey", "knife", "giraffe", "skateboard", "woman", "goose", "sheep", "skis", "ski"]
    singular_of = plurals([*words, "calf", "sheriff", "buffalo", "child", "children"])
    assert {singular_of[plural] for plural in ("dogs", "benches", "buses", "boxes", "puppies", "monkeys", "knives", "giraffes")} == {
        "dog", "bench", "bus", "box", "puppy", "monkey", "knife", "giraffe",
    }  # fmt: skip
    assert (
        singular_of["women"] == "woman"
        and singular_of["geese"] == "goose"
        and singular_of["calves"] == "calf"
        and singular_of["sheriffs"] == "sheriff"
    )
    assert singular_of["buffaloes"] == singular_of["buffalos"] == "buffalo"
    assert "skis" not in singular_of and "children" not in singular_of  # words of the table stay what they are
    assert "sheeps" not in singular_of


def test_coco(tmp_path, known):
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "dining table"}],
        "annotations": [{"image_id": 1, "category_id": 7}, {"image_id": 1, "category_id": 7}, {"image_id": 3, "category_id": 9}],
    }
    captions = {"annotations": [{"image_id": 1, "caption": "A man with a puppy"}, {"image_id": 9, "caption": "a cat"}]}
    (tmp_path / "instances_val2014.json").write_text(json.dumps(instances))
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    assert coco_truth(tmp_path, known) == {1: {"dog", "person"}, 2: set(), 3: {"dining table"}}
    assert coco_truth(tmp_path, known, images={3}) == {3: {"dining table"}}
    instances["categories"].append({"id": 1, "name": "zebra"})
    (tmp_path / "instances_val2014.json").write_text(json.dumps(instances))
    with pytest.raises(UserError, match="no line for 'zebra'"):
        coco_truth(tmp_path, known)


def test_files(tmp_path):
    with pytest.raises(UserError, match=r"absent\.txt"):
        synonyms(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text("\n , \n")
    with pytest.raises(UserError, match="names no class"):
        synonyms(tmp_path / "empty.txt")
    (tmp_path / "instances_x.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        (tmp_path / "known.txt").write_text("dog")
        coco_truth(tmp_path, synonyms(tmp_path / "known.txt"))
    with pytest.raises(UserError, match="no instances"):
        coco_truth(tmp_path / "nowhere", synonyms(tmp_path / "known.txt"))
