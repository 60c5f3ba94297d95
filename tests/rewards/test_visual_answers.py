"""Rewards on what a vision-language model says of places and orders: boxes, points, permutations."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.conversations import known_by
from mmalign.rewards._shared.boxes import Box, boxes_in, json_in, matched, overlaps
from mmalign.rewards.grounding.detection import detection
from mmalign.rewards.grounding.grounded_answer import center_closeness, grounded_answer
from mmalign.rewards.grounding.jigsaw import jigsaw
from mmalign.rewards.grounding.several_points import several_points
from mmalign.types import UserError
from tests.helpers.tiny_models import images


def box(*corners, label="cat"):
    return {"bbox_2d": list(corners), "label": label}


def said(*boxes, fence=True):
    return f"Here:\n```json\n{json.dumps(list(boxes))}\n```" if fence else json.dumps(list(boxes))


def one(reward, text, answer, **columns):
    scores = reward([text], ["p"], **{"boxes": [answer], "order": [answer], "answer": [answer], "box": [answer], **columns})
    return {name: values.item() for name, values in scores.items()} if isinstance(scores, dict) else scores.item()


# ---- boxes


def test_boxes_are_read_off_what_models_write():
    assert json_in('x [{"a": 1}] y') == [{"a": 1}]
    assert json_in("```json\n[1, 2]\n``` or ```[3]```") == [3]
    assert json_in("[" * 100_000) is None and json_in("nothing") is None and json_in("") is None
    assert boxes_in([box(0, 0, 2, 1), {"box": [1, 1, 2, 2]}, [0, 0, 1, 1]]) == [
        Box((0, 0, 2, 1), "cat"),
        Box((1, 1, 2, 2), ""),
        Box((0, 0, 1, 1), ""),
    ]
    assert boxes_in([box(2, 0, 0, 1)]) == []  # corners the wrong way round
    assert boxes_in([box(0, 0, 2)]) is None and boxes_in([box(0, 0, 2, "x")]) is None and boxes_in("x") is None
    assert boxes_in(json.loads('[{"bbox_2d": [0, 0, Infinity, 1]}]')) is None and boxes_in([box(0, 0, True, 1)]) is None


def test_overlaps_are_those_of_counted_cells():
    boxes = [Box((0, 0, 4, 3), ""), Box((1, 1, 5, 2), ""), Box((6, 6, 7, 8), "")]
    for a, b in itertools.product(range(3), repeat=2):
        cells = [
            {(x, y) for x in range(int(c[0]), int(c[2])) for y in range(int(c[1]), int(c[3]))} for c in (boxes[a].corners, boxes[b].corners)
        ]
        assert overlaps(boxes, boxes)[a, b].item() == pytest.approx(len(cells[0] & cells[1]) / len(cells[0] | cells[1]))


def test_the_matching_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners = torch.rand(7, 4, generator=generator) * 10
        boxes = [Box((min(a, c), min(b, d), max(a, c) + 1, max(b, d) + 1), "") for a, b, c, d in corners.tolist()]
        drawn, true = boxes[:4], boxes[4:]
        table = overlaps(drawn, true)
        best = max(sum(table[row, column].item() for column, row in enumerate(rows)) for rows in itertools.permutations(range(4), 3))
        assert matched(drawn, true).sum().item() == pytest.approx(best)


# ---- detection


def test_detection():
    true = [box(0, 0, 10, 10), box(20, 20, 30, 30, label="dog")]
    reward = detection(apart=True)
    assert one(reward, said(*true), true) == {"format": 1, "recall": 1, "precision": 1}
    assert one(detection(), said(*true), true) == 1
    assert one(reward, said(true[0]), true) == {"format": 1, "recall": 0.5, "precision": 1}
    assert one(reward, said(*true, box(50, 50, 60, 60)), true) == pytest.approx({"format": 1, "recall": 1, "precision": 2 / 3})
    assert one(reward, said(*true, *true), true) == {"format": 1, "recall": 1, "precision": 0.5}  # the same box twice is no better
    half = box(0, 0, 10, 6)  # overlap .6
    assert one(reward, said(half), [true[0]]) == {"format": 1, "recall": 1, "precision": pytest.approx(0.6)}
    assert one(reward, said(box(0, 0, 10, 4)), [true[0]]) == {"format": 1, "recall": 0, "precision": pytest.approx(0.4)}
    assert one(reward, "a cat", true) == {"format": 0, "recall": 0, "precision": 0}
    assert one(reward, said([0, 0, 10, 10]), [true[0]]) == {"format": 0, "recall": 1, "precision": 1}  # boxes without a label
    assert one(reward, "nothing", []) == {"format": 1, "recall": 1, "precision": 1}
    assert one(reward, said(true[0]), []) == {"format": 0, "recall": 0, "precision": 0}


def test_labels_count_where_they_are_asked_for():
    true = [box(0, 0, 10, 10), box(1, 0, 10, 10, label="The dog.")]
    drawn = said(box(0, 0, 10, 10, label="dog"))
    assert one(detection(apart=True), drawn, true)["recall"] == 0.5
    scores = one(detection(apart=True, labels=True), drawn, true)
    assert scores["recall"] == 0.5 and scores["precision"] == pytest.approx(0.9)  # the dog's, although the cat's box is nearer
    assert one(detection(apart=True, labels=True), drawn, [true[0]])["recall"] == 0


def test_thresholds_rise_at_a_step():
    true, drawn = [box(0, 0, 10, 10)] * 1, said(box(0, 0, 10, 7))  # overlap .7
    reward = detection(switch_at=3, apart=True)
    reward.at(2)
    assert one(reward, drawn, true) == {"format": 1, "recall": 1, "precision": pytest.approx(0.7)}
    assert one(reward, said(box(0, 0, 10, 8)), true)["precision"] == 1  # above .75
    assert one(reward, said(box(0, 0, 10, 4)), true)["precision"] == 0  # below .5
    reward.at(3)
    assert one(reward, drawn, true) == {"format": 1, "recall": 0, "precision": 0}
    assert one(reward, said(box(0, 0, 10, 8)), true) == {"format": 1, "recall": 1, "precision": pytest.approx(0.8)}
    reward.at(0)
    assert one(reward, drawn, true)["recall"] == 1
    five = [box(10 * n, 0, 10 * n + 10, 10) for n in range(5)]
    for count, recall in {2: 0.0, 3: 0.6, 4: 1.0}.items():  # .4 is cut to 0, .8 to 1
        assert one(reward, said(*five[:count]), five)["recall"] == pytest.approx(recall)
    assert one(detection(thresholds=(0.75, 0.0, 1.0), apart=True), drawn, true)["recall"] == 0


# ---- orders


THINK = "<think>the sky is up</think>\n"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (f"{THINK}<answer>2, 0, 1, 3</answer>", 1.2),
        (f"{THINK}<answer>[2, 0, 1, 3]</answer>\n", 1.2),
        (f"{THINK}<answer>2 0 3 1</answer>", 0.2 + 0.2 * 0.5),
        (f"{THINK}<answer>0, 1, 3, 2</answer>", 0.2),  # an order with no piece in its place
        (f"{THINK}<answer>2, 0, 1, 1</answer>", 0.2),  # three right places, and no order
        (f"{THINK}<answer>2, 0, 1</answer>", 0.2),
        (f"{THINK}<answer>2, 0, 1, 3, 4</answer>", 0.2),
        (f"{THINK}<answer>two</answer>", 0.2),
        ("<answer>2, 0, 1, 3</answer>", 0),
        (f"{THINK}2, 0, 1, 3", 0),
        (f"{THINK}<answer>2, 0, 1, 3</answer><answer>3, 2, 1, 0</answer>", 0),
        ("", 0),
    ],
)
def test_jigsaw(text, score):
    for true in ([2, 0, 1, 3], "2, 0, 1, 3"):
        assert one(jigsaw(), text, true) == pytest.approx(score)


def test_jigsaws_of_other_forms():
    assert one(jigsaw(where="boxed"), f"{THINK}so \\boxed{{1, 0}}.", [1, 0]) == pytest.approx(1.2)
    assert one(jigsaw(where="boxed"), f"{THINK}so 1, 0", [1, 0]) == 0
    assert one(jigsaw(think=False, formed=0.0, partial=0.5), "<answer>1, 0, 2</answer>", [1, 2, 0]) == pytest.approx(0.5 / 3)
    with pytest.raises(UserError, match=r"jigsaw\.column: got '\[1, 1\]', takes an order of different whole numbers"):
        one(jigsaw(), THINK, [1, 1])
    assert jigsaw().high == 1.2


# ---- an answer with places


TRUE = {"answer": "The left one", "boxes": {"red car": [0, 0, 10, 10], "bus": [20, 0, 40, 10]}}


def grounded(location, answer="the left one."):
    return f"<location>{location}</location> <think>x</think> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "location", "answer", "form"),
    [
        (grounded("Red car: [0, 0, 10, 9], the bus: [20, 0, 40, 10]"), 1, 1, 1),
        (grounded("red car: [0, 0, 10, 9]"), 0.5, 1, 1),
        (grounded("red car: [0, 0, 10, 4], bus: [0, 0, 10, 10]"), 0, 1, 1),
        (grounded("red car: [0, 0, 1.2.3, 4], bus: [40, 0, 20, 10]"), 0, 1, 1),
        (grounded("truck: [0, 0, 10, 10]", "right"), 0, 0, 1),
        ("<answer>left one</answer>", 0, 1, 0),
        (grounded("") + grounded(""), 0, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_grounded_answers(text, location, answer, form):
    assert one(grounded_answer(apart=True), text, TRUE) == {"location": location, "answer": answer, "format": form}
    assert one(grounded_answer(weights={"location": 2.0}), text, TRUE) == 2 * location + answer + form


def test_the_logic_of_an_answer_is_asked_without_its_picture():
    """Of three completions one has no reasoning; the judge sees words alone, and says .25 of the first and 1 of the last."""
    seen = []

    def judge(outputs, prompts, *, scene, **columns):
        seen.append((outputs, prompts, scene))
        return torch.tensor([0.25, 1.0])

    said = ["<think> it is\nnear </think> <answer> left one </answer>", "<answer>left one</answer>", "<think>x</think><answer>y</answer>"]
    prompt = [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "Where?"}]}]
    reward = grounded_answer(logic=judge, apart=True)
    parts = reward(said, [prompt, "Which?", "Who?"], answer=[json.dumps(TRUE)] * 3, scene=[1, 2, 3])
    assert parts["logic"].tolist() == [0.25, 0.0, 1.0] and parts["answer"].tolist() == [1.0, 1.0, 0.0]
    assert seen == [(["it is\nnear\nAnswer: left one", "x\nAnswer: y"], ["Where?", "Who?"], [1, 3])]
    total = grounded_answer(logic=judge, weights={"logic": 2.0})(said, ["?"] * 3, answer=[json.dumps(TRUE)] * 3, scene=[1, 2, 3])
    assert total.tolist() == [1.5, 1.0, 2.0]
    with pytest.raises(UserError, match=r"grounded_answer\.logic: refusal scores -1.0 to 1.0, takes a reward of 0 to 1"):
        grounded_answer(logic=mm.rewards.refusal())
    with pytest.raises(UserError, match=r"grounded_answer\.logic: got \[3.0, 3.0\], takes one number in 0..1"):
        grounded_answer(logic=lambda outputs, prompts: torch.full((2,), 3.0))(said, ["?"] * 3, answer=[json.dumps(TRUE)] * 3)


def test_centers_may_be_compared_in_place_of_boxes():
    drawn, true = Box((0, 0, 2, 2), "x"), Box((0, 0, 10, 4), "x")
    assert center_closeness(drawn, true) == pytest.approx(math.sqrt((1 - 4 / 5) * (1 - 1 / 2)))
    assert center_closeness(true, true) == 1 and center_closeness(Box((90, 0, 99, 1), ""), true) == 0
    near = grounded("red car: [4, 4, 6, 6], bus: [20, 0, 22, 2]")
    assert one(grounded_answer(by="center", apart=True), near, TRUE)["location"] == 0.5
    without = {"answer": "left"}
    assert math.isnan(one(grounded_answer(), grounded("", "left"), without))
    assert one(grounded_answer(weights={"location": 0.0}), grounded("", "left"), without) == 2


# ---- points


def points(*found, think="<think>x</think>"):
    return think + json.dumps([{"point_2d": list(point)} for point in found])


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (points((5, 5)), 2),
        (points((50, 5)), 0),
        (points((50, 5), (5, 5)), 1 + 1 / 2),
        (points((5, 5), (50, 5)), 1 + 1 / math.sqrt(2)),
        (points((50, 5), (60, 9), (5, 5), (90, 80)), 1 + 1 / math.sqrt(4 * 3)),
        (points((50, 5), (60, 9), (70, 50)), 1 - 1 / 3),
        (points((5, 5), (6, 6), (7, 7)), -1),  # on a line
        (points((5, 5), (6, 9), (7, 5), (5, 5)), -1),
        (points((5, 5), think=""), -1),
        (points((5, 5), think="<think></think>"), -1),
        (points(), -1),
        ("<think>x</think>[[5, 5]]", -1),
        ("", -1),
    ],
)
def test_several_points(text, score):
    assert one(several_points(), text, [0, 0, 10, 10]) == pytest.approx(score)


def test_points_have_a_limit_and_may_come_without_thought():
    assert one(several_points(think=False), points((5, 5), think=""), [0, 0, 10, 10]) == 2
    assert one(several_points(most=1), points((5, 5), (6, 9)), [0, 0, 10, 10]) == -1


# ---- where answers come from


def test_prompts_are_known_by_words_and_pictures():
    held = [[{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "q"}]}] for picture in images()[:2]]
    assert known_by(held[0]) == known_by(held[0]) != known_by(held[1]) and known_by(" q ") == "q"


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: detection(switch_at=3, thresholds=(0.5, 0.5, 0.5)), "takes at most one of them"),
        (lambda: detection(thresholds=(0.5, 0.9, 0.5)), r"detection\.thresholds"),
        (lambda: one(detection(), "x", [[1, 2, 3]]), r"detection\.column: got '\[\[1, 2, 3\]\]', takes a list of boxes"),
        (lambda: one(detection(), "x", "cat"), r"detection\.column: got 'cat'"),
        (lambda: jigsaw(partial=1.0), "jigsaw: got partial=1"),
        (lambda: grounded_answer(by="iou"), "grounded_answer: got by='iou'"),
        (lambda: grounded_answer(weights={"logic": 1.0}), r"grounded_answer\.weights"),
        (lambda: one(grounded_answer(), "x", {"answer": "a", "boxes": {"car": [3, 0, 1, 1]}}), r"grounded_answer\.column"),
        (lambda: several_points(most=0), r"several_points\.most: got 0"),
        (lambda: one(several_points(), "x", [0, 0, 10]), r"several_points\.column: got '\[0, 0, 10\]'"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_any_text_has_a_score_in_range():
    generator = torch.Generator().manual_seed(0)
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "<location>", "[", "]", "{", "}", '"bbox_2d"', ":", "1, 2", "-", "."]
    pieces += ["cat: [1, 2, 3, 4]", "\\boxed{", "```", "\n"]
    texts = ["".join(pieces[int(n)] for n in torch.randint(len(pieces), (12,), generator=generator)) for _ in range(300)]
    answers = {"boxes": [box(0, 0, 1, 1)], "order": [1, 2], "answer": TRUE, "box": [0, 0, 1, 1]}
    for reward in (detection(), jigsaw(), jigsaw(where="boxed"), grounded_answer(), several_points()):
        scores = reward(texts, ["p"] * 300, **{name: [value] * 300 for name, value in answers.items()})
        assert bool(((scores >= reward.low) & (scores <= reward.high)).all())
