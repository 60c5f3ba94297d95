"""Text in images: distances by hand, a reader of the user's, and PaddleOCR as its version 3 answers."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy
import pytest
import torch

from mmalign.rewards.pictures.ocr import edit_distance, ocr
from mmalign.types import UserError
from tests.helpers.tiny_models import images

ASKED = ['a sign that says "Open now"', "a sign that says “CLOSED”", "a sign", 'a "cat"']


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("ab", "ba", 2), ("same", "same", 0)],
)
def test_edit_distance(first, second, distance):
    assert edit_distance(first, second) == distance


def test_scores_by_hand():
    lines = iter([["OPEN", "NOW"], ["clsed"], ["catcat"]])  # the third prompt asks for no text, so nothing is read there
    scores = ocr(read=lambda image: next(lines))(images(), ASKED)
    assert scores.isnan().tolist() == [False, False, True, False]
    assert scores[[0, 1, 3]].tolist() == pytest.approx([1.0, 1 - 1 / 6, 1 - 3 / 6])


def test_the_dialect_of_flow_grpo_pays_for_repetition():
    lines = iter([["say open now open now"], ["c"], ["dog dog dog"]])
    scores = ocr(read=lambda image: next(lines), inside=True)(images(), ASKED)
    assert scores[[0, 1, 3]].tolist() == pytest.approx([1.0, 1 / 6, 0.0])


def test_nothing_read_is_zero_and_not_missing():
    assert ocr(read=lambda image: [])(images()[:1], ASKED[:1]).tolist() == [0.0]


def test_the_reader_sees_bytes():
    seen = []
    ocr(read=lambda image: seen.append(image) or [])(images()[:1], ASKED[:1])
    assert seen[0].dtype == numpy.uint8 and seen[0].shape == (48, 40, 3)
    assert torch.equal(torch.tensor(seen[0]).permute(2, 0, 1) / 255, images()[0])


def test_a_reader_that_fails_is_not_a_score():
    def broken(image):
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        ocr(read=broken)(images()[:1], ASKED[:1])


def test_paddle(monkeypatch):
    made, seen = {}, []

    def engine(**given):
        made.update(given)
        return SimpleNamespace(predict=lambda image: seen.append(image) or [{"rec_texts": ["open", "now"], "rec_scores": [0.9, 0.8]}])

    monkeypatch.setitem(sys.modules, "paddleocr", SimpleNamespace(__version__="3.7.0", PaddleOCR=engine))
    assert ocr(language="de")(images()[:1], ASKED[:1]).tolist() == [1.0]
    assert made["lang"] == "de"
    assert torch.equal(torch.tensor(seen[0]).flip(-1).permute(2, 0, 1) / 255, images()[0])  # blue first


@pytest.mark.parametrize(
    ("module", "says"), [(None, "pip install paddleocr"), (SimpleNamespace(__version__="2.9.1"), "got paddleocr 2.9.1")]
)
def test_without_a_paddle_that_fits(monkeypatch, module, says):
    monkeypatch.setitem(sys.modules, "paddleocr", module)
    with pytest.raises(UserError, match=says):
        ocr()
