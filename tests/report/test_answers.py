"""The page of a run that answers in words: images, marks, the plane of inventions and recall, and what it says at the top."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from mmalign.report import build
from mmalign.report.answers import MOST_STEPS, marked, spaced
from mmalign.report.hallucination import Standing, front
from mmalign.runs import answers
from mmalign.runs.overoptimisation import Point, fell_silent
from tests.helpers.fake_run import make_run, make_vlm_run
from tests.report.test_report import Page
from tests.runs.test_answers import shown_in_turns


def page(run):
    text = build(run).read_text(encoding="utf-8")
    return Page(text), text


def test_a_run_that_learns_to_invent_less(tmp_path):
    parsed, text = page(make_vlm_run(tmp_path))
    assert "36.0\N{NO-BREAK SPACE}% → 5.1\N{NO-BREAK SPACE}% of answers invent something, 97.0" in parsed.text
    assert "over-optimisation cannot be told" not in parsed.text and "Falling silent" not in parsed.text
    assert len(parsed.named("li", "case")) == 12 and "2 more are in the folder answers" in parsed.text
    images = [image["src"] for image in parsed.named("img")]
    assert len(images) == 12 and all(source.startswith("data:image/png;base64,") for source in images)
    assert len(parsed.named("del", "invented")) > 5 and len(parsed.named("b", "there")) > 100
    titles = [word for word in parsed.words if word in ("Inventions against recall", "Length of answers", "Image dependence")]
    assert titles == ["Inventions against recall", "Length of answers", "Image dependence"]
    assert "Within-class spread" not in parsed.text
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", text))
    steps = next(attrs for attrs in parsed.named("div", "controls"))["data-steps"]
    assert steps == "0 20 40 60 80 100"
    last = [one for one in parsed.named("div", "at") if "hidden" not in one]
    assert {one["data-step"] for one in last} == {"100"}


def test_a_run_that_falls_silent(tmp_path):
    parsed, _ = page(make_vlm_run(tmp_path, silent=True))
    assert "it says less since step 0" in parsed.text
    assert "Recall fell from 0.97 to 0.49 while inventions became fewer; its best was at step 0" in parsed.text
    assert parsed.text.count("Not said:") > 10


def test_images_keep_their_page(tmp_path):
    parsed, _ = page(make_run(tmp_path))
    assert "Answers before and after" not in parsed.text and "Inventions against recall" not in parsed.text
    assert "Within-class spread" in parsed.text


def test_texts_have_answers_without_marks_or_images(tmp_path):
    run = make_vlm_run(tmp_path)
    for file in (run / "answers").glob("step_*.jsonl"):
        file.unlink()
    answers.write(run, 0, ["<b>Two</b> and two?"], ["five <script>"])
    answers.write(run, 20, ["<b>Two</b> and two?"], [""], scores={"<i>": torch.tensor([[0.25]]), "none": torch.tensor([[math.nan]])})
    parsed, text = page(run)
    assert ">&lt;i&gt; 0.25<" in text
    assert "&lt;b&gt;Two&lt;/b&gt; and two?" in text and "five &lt;script&gt;" in text
    assert "says nothing" in parsed.text and "Red and struck through" not in parsed.text
    assert len(parsed.named("li", "blind")) == 1


def test_what_a_model_says_is_no_html(tmp_path):
    run = make_vlm_run(tmp_path, questions=1)
    marks = [{"mentions": [(0, 3, "<u>", False), (3, 6, "<i>", True)], "objects": ["<s>"]}]
    for step in (0, 20, 40, 60, 80, 100):
        answers.write(run, step, ["<h1>"], ["<u><i><a>"], marks)
    parsed, text = page(run)
    assert not re.search(r"<(u|i|a|s|h1)>", text.split("</header>")[1])
    assert "&lt;u&gt;</del>" in text and "&lt;i&gt;</b>" in text and "Not said: &lt;s&gt;" in text and "<h1>" in parsed.text


def test_turns_before_an_answer_are_shown_with_their_pictures(tmp_path):
    run = make_vlm_run(tmp_path, questions=1)
    for step in (0, 20, 40, 60, 80, 100):
        answers.write(run, step, ["what?"], [shown_in_turns()])
    parsed, text = page(run)
    assert [image["alt"] for image in parsed.named("img")] == ["shown by the tool"] * 6
    assert "zoom 1" in parsed.text and "&lt;closer&gt;" in text and "a dog" in parsed.text
    line = json.loads((run / "answers/step_000100.jsonl").read_text())
    line["turns"] = [7, {"role": "tool", "images": ["../../x.png", None]}]
    (run / "answers/step_000100.jsonl").write_text(json.dumps(line) + "\n")
    assert len(page(run)[0].named("img")) == 5


def test_one_evaluation_needs_no_slider(tmp_path):
    run = make_vlm_run(tmp_path)
    for file in list((run / "answers").glob("step_*.jsonl"))[:]:
        if file.stem != "step_000000":
            file.unlink()
    parsed, _ = page(run)
    assert parsed.named("input") == [] and len(parsed.named("div", "told")) == 12


def test_images_that_are_gone_or_elsewhere(tmp_path):
    run = make_vlm_run(tmp_path, questions=2)
    for file in (run / "answers" / "images").iterdir():
        file.unlink()
    (tmp_path / "secret.png").write_bytes(b"not of this run")
    lines = (run / "answers/step_000100.jsonl").read_text().splitlines()
    row = {**json.loads(lines[0]), "images": ["../../secret.png", 7, None]}
    (run / "answers/step_000100.jsonl").write_text(json.dumps(row) + "\n" + lines[1] + "\n")
    parsed, text = page(run)
    assert parsed.named("img") == [] and "some images of answers could not be read" in parsed.text
    assert "bm90IG9mIHRoaXMgcnVu" not in text


def row(text, *marks, objects=()):
    return {"answer": text, "mentions": [list(mark) for mark in marks], "objects": list(objects)}


def test_pieces():
    html = marked(3, row("a dog and a cat", (12, 15, "cat", False), (2, 5, "dog", True), objects=["dog", "car", "bus"]))
    assert [(piece.text, piece.kind) for piece in html.pieces] == [("a ", ""), ("dog", "there"), (" and a ", ""), ("cat", "invented")]
    assert html.unsaid == ["car", "bus"] and html.known
    assert "".join(piece.text for piece in html.pieces) == "a dog and a cat"


@pytest.mark.parametrize("mark", [(2, 99, "x", True), (5, 2, "x", True), (-1, 3, "x", True), (3, 3, "x", True)])
def test_marks_that_do_not_fit_lose_no_words(mark):
    html = marked(0, row("a dog here", mark, (2, 5, "dog", True), (3, 8, "og he", False)))
    assert "".join(piece.text for piece in html.pieces) == "a dog here"
    assert [piece.kind for piece in html.pieces if piece.kind] == ["there"]


def test_answers_without_marks_are_not_known():
    assert not marked(0, {"answer": "x"}).known and marked(0, {"answer": None, "mentions": []}).pieces == []


def test_many_steps_are_thinned_with_both_ends():
    steps = [(step, []) for step in range(100)]
    kept = [step for step, _ in spaced(steps)]
    assert len(kept) == MOST_STEPS and kept[0] == 0 and kept[-1] == 99 and kept == sorted(set(kept))
    assert spaced(steps[:5]) == steps[:5]


def at(step, invented, recalled):
    return Standing(step, Point(step, invented), Point(step, recalled))


def test_the_front():
    points = [at(0, 0.3, 0.9), at(1, 0.2, 0.8), at(2, 0.2, 0.7), at(3, 0.1, 0.8), at(4, 0.4, 0.9), at(5, 0.1, 0.8), at(6, 0.05, 0.2)]
    assert [point.step for point in front(points)] == [6, 3, 0]


def curve(*values, error=0.01):
    return [Point(step, value, error) for step, value in enumerate(values)]


def test_silence():
    fewer = curve(0.3, 0.2, 0.1)
    assert fell_silent(fewer, curve(0.9, 0.95, 0.6)).began == 1
    assert fell_silent(fewer, curve(0.9, 0.95, 0.92)) is None  # 3 %: not worth a warning
    assert fell_silent(fewer, curve(0.9, 0.95, 0.6, error=0.5)) is None  # chance
    assert fell_silent(curve(0.3, 0.2, 0.4), curve(0.9, 0.95, 0.6)) is None  # it invents more: that is another trouble
    assert fell_silent(fewer, curve(0.9, 0.5, 0.9)) is None  # it came back
    assert fell_silent(fewer, curve(0.9)) is None
