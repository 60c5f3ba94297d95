from __future__ import annotations

import math

import pytest

from mmalign.data._schemas import outputs as schemas
from mmalign.media import Broken

LIST = {"prompt": "p", "image": ["a", "b", "c"], "id": "x"}


@pytest.mark.parametrize(
    ("labels", "strength"),
    [
        ((1, 0, True), 1.0),
        ((0, 1, True), 0.0),
        ((0.5, 0.5, True), 0.5),
        ((1, 0, False), math.nan),
        ((None, 1, True), math.nan),
        ((0, 0, True), math.nan),
    ],
)
def test_pickapic(labels, strength):
    row = {
        "caption": "c",
        "jpg_0": b"0",
        "jpg_1": b"1",
        "label_0": labels[0],
        "label_1": labels[1],
        "has_label": labels[2],
        "ranking_id": 9,
    }
    (draft,) = schemas.pickapic(row, "n")
    assert draft[:3] == ("c", b"0", b"1") and draft.id == "9" and draft.strength == pytest.approx(strength, nan_ok=True)


def test_hpdv2_pairs():
    (draft,) = schemas.hpdv2({"prompt": "p", "image_path": ["a", "b"], "human_preference": [0, 1]}, "n")
    assert draft[:5] == ("p", "a", "b", 0.0, "n")
    (draft,) = schemas.hpdv2({"prompt": "p", "image": ["a", "b"]}, "n")
    assert math.isnan(draft.strength)


def test_hpdv2_lists():
    """Rank 0 is the best; every two images are a pair."""
    strengths = {(d.first, d.second): (d.strength, d.id) for d in schemas.hpdv2({**LIST, "rank": [1, 0, 1]}, "n")}
    assert strengths == {("a", "b"): (0.0, "x:0-1"), ("a", "c"): (0.5, "x:0-2"), ("b", "c"): (1.0, "x:1-2")}
    people = [[0, 1, 2], [0, 2, 1], {"rank": [1, 0, 2]}, [0, 1, 1]]
    strengths = {(d.first, d.second): d.strength for d in schemas.hpdv2({**LIST, "raw_annotations": people, "rank": [9, 9, 9]}, "n")}
    assert strengths == {("a", "b"): 0.75, ("a", "c"): 1.0, ("b", "c"): pytest.approx(2.5 / 4)}


def test_rows_that_are_broken():
    for row in ({"prompt": "p", "image": ["a"]}, {**LIST, "rank": [1, 2]}, {**LIST, "rank": [1, 2, None]}, {**LIST, "rank": 3}):
        with pytest.raises(Broken):
            list(schemas.hpdv2(row, "n"))
    plain = schemas.columns({})
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert next(plain(good, "n"))[:5] == ("p", "a", "b", 1.0, "n")
    for change in ({"prompt": None}, {"chosen": None}, {"strength": 1.5}, {"strength": "high"}):
        with pytest.raises(Broken):
            list(plain({**good, **change}, "n"))


def test_guesses():
    assert schemas.guess({"jpg_0": 0, "jpg_1": 0, "caption": 0}, None) is schemas.pickapic
    assert schemas.guess({"image": 0, "human_preference": 0}, None) is schemas.hpdv2
    with pytest.raises(Broken, match="columns image, note look like no known schema"):
        schemas.guess({"image": 0, "note": 0}, None)
