"""The numbers of CHAIR and POPE by hand, on answers that stand on every trap of the published scripts."""

from __future__ import annotations

import math

import pytest

from mmalign.evaluation.hallucination import chair_scores, object_scores, pope_scores, yes_or_no
from mmalign.types import UserError

# mentions, what is there
CAPTIONS = [
    (["dog", "cat", "dog"], {"dog", "car"}),  # 1 of 3 invented; dog recalled of dog, car
    (["person"], {"person"}),  # right
    ([], {"car", "bus"}),  # says nothing
    (["cat", "cat", "cat", "dog"], {"dog"}),  # 3 of 4: an invention counts as often as it is said
]
MENTIONS, OBJECTS = [mentions for mentions, _ in CAPTIONS], [objects for _, objects in CAPTIONS]


def test_chair_by_hand():
    scores = chair_scores(MENTIONS, OBJECTS)
    assert scores.values["chair_i"].value == 4 / 8  # pooled; the mean over captions would be (1/3 + 0 + 3/4) / 3
    assert scores.values["chair_s"].value == 2 / 4
    assert scores.values["chair_s_mentioning"].value == 2 / 3  # the silent caption is not in the denominator
    assert scores.values["object_recall"].value == 3 / 6  # dog said twice is recalled once
    assert scores.counts == {"answers": 4, "missing": 0, "silent": 1}
    assert [round(row["chair_i"], 3) for row in scores.rows[:2]] == [0.333, 0.0]
    assert math.isnan(scores.rows[2]["chair_i"])
    assert scores.published == pytest.approx({"CHAIRs": 50.0, "CHAIRs_refine": 100 * 2 / 3, "CHAIRi": 50.0, "obj_rec": 50.0})


def test_a_model_that_falls_silent():
    loud = chair_scores(MENTIONS, OBJECTS).values
    quiet = chair_scores([*MENTIONS, *[[]] * 4], [*OBJECTS, *[{"dog"}] * 4]).values
    assert quiet["chair_s"].value < loud["chair_s"].value
    assert quiet["chair_s_mentioning"].value == loud["chair_s_mentioning"].value
    assert quiet["chair_i"].value == loud["chair_i"].value
    assert quiet["object_recall"].value < loud["object_recall"].value


def test_no_mention_anywhere_is_not_known_and_not_zero():
    values = chair_scores([[], []], [{"dog"}, set()]).values
    assert values["chair_s"].value == 0.0 and values["object_recall"].value == 0.0
    assert math.isnan(values["chair_i"].value) and math.isnan(values["chair_s_mentioning"].value)


def test_a_missing_caption_is_left_out_and_counted():
    scores = chair_scores([*MENTIONS, None], [*OBJECTS, {"dog"}])
    assert scores.values == chair_scores(MENTIONS, OBJECTS).values
    assert scores.counts["missing"] == 1 and scores.rows[-1] is None


def test_lengths():
    scores = chair_scores([["dog"], [], ["dog"]], [{"dog"}] * 3, answers=["a  dog, here", "", None])
    assert scores.values["answer_words"].value == 3 / 2
    assert scores.published["avg_word_len"] == (4 + 1) / 2  # the script: double spaces are words, and so is nothing
    assert scores.counts["missing"] == 1


def test_intervals_are_of_images():
    images = ["one"] * 4
    assert math.isnan(chair_scores(MENTIONS, OBJECTS, clusters=images).values["chair_i"].low)
    own = chair_scores(MENTIONS, OBJECTS).values["chair_i"]
    assert own.low < own.value < own.high


@pytest.mark.parametrize(
    ("answer", "reading", "parsed"),
    [
        ("Yes", "yes", True),
        ("No", "no", True),
        ("no, there is none", "no", True),
        ("There is not a dog", "no", True),
        ("Yes. No, wait", "yes", True),  # the first sentence alone
        ("Yes, no doubt", "no", True),  # a no anywhere in it
        ("", "yes", False),  # nothing counts as yes
        ("I cannot see the image", "yes", False),  # cannot is not not
        ("NO", "yes", True),  # capitals are not looked for
        ("No!", "yes", True),  # a word ends at a space
        ("There isn't one", "yes", True),
        ("No\nthere is none", "yes", True),  # and not at a line's end
        ("Nothing of the kind", "yes", False),
    ],
)
def test_pope_reads_an_answer(answer, reading, parsed):
    assert yes_or_no(answer) == (reading, parsed)


def test_pope_by_hand():
    answers = ["Yes", "No", "Yes", "", "no", "Yes, it is.", None]
    labels = ["yes", "yes", "no", "no", "no", "yes", "yes"]
    scores = pope_scores(answers, labels)
    # tp 2 (1st, 6th), fn 1 (2nd), fp 2 (3rd, and the empty 4th), tn 1 (5th)
    values = {name: interval.value for name, interval in scores.values.items()}
    assert values == pytest.approx({"accuracy": 3 / 6, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 6})
    assert scores.counts == {"answers": 7, "missing": 1, "unparsed": 1}
    assert [row and row["outcome"] for row in scores.rows] == ["tp", "fn", "fp", "fp", "tn", "tp", None]


def test_pope_splits_have_their_own_numbers_and_denominators():
    # a perfect model on a split like the released random one: more yes than no
    labels = ["yes"] * 50 + ["no"] * 47 + ["yes", "no"]
    splits = ["random"] * 97 + ["popular"] * 2
    answers = [label.capitalize() for label in labels[:97]] + ["No", "No"]
    scores = pope_scores(answers, labels, splits=splits)
    assert scores.values["random/accuracy"].value == 1.0
    assert round(scores.values["random/yes_ratio"].value, 3) == 0.515
    assert scores.values["popular/accuracy"].value == 0.5
    assert math.isnan(scores.values["popular/precision"].value)  # no yes at all: the script divides by 0


def test_pope_questions_of_one_image_stand_or_fall_together():
    answers, labels = ["Yes", "No"] * 30, ["yes"] * 60
    images = [row // 6 for row in range(60)]
    right = pope_scores(answers, labels, clusters=images).values["accuracy"]
    assert right.error == pytest.approx(0.0)  # every image has 3 of 6 right
    assert pope_scores(answers, labels).values["accuracy"].error > 0.05


def test_odd_input():
    with pytest.raises(UserError, match="3 answers"):
        pope_scores(["Yes"] * 3, ["yes"] * 2)
    with pytest.raises(UserError, match="label 'maybe'"):
        pope_scores(["Yes"], ["maybe"])
    with pytest.raises(UserError, match="1 mentions, 2 truth"):
        chair_scores([[]], [set(), set()])


def test_as_a_metric_of_a_run():
    objects = {"one": ["dog", "car"], "two": ["cat"]}

    def mark(outputs, prompts):
        return [
            {"mentions": [(0, 3, word, word in objects[prompt]) for word in text.split()], "objects": objects[prompt]}
            for text, prompt in zip(outputs, prompts, strict=True)
        ]

    rates = object_scores(mark)(["dog cat", "dog", "cat", "cat"], ["one", "one", "two", "two"])
    assert (rates["chair_s"], rates["chair_i"], rates["object_recall"], rates["answer_words"]) == (1 / 4, 1 / 5, 4 / 6, 5 / 4)
    # rows of one prompt are drawn together: of 4 draws of two prompts chair_s is 1/2, 1/4 (twice) and 0
    assert rates["chair_s_se"] == pytest.approx(0.177, abs=0.01)
