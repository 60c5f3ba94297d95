from __future__ import annotations

import json
import math

import pytest

from mmalign.evaluation.judged import ask_all, rating, rating_scores, remembering, verdict


@pytest.mark.parametrize(
    ("review", "number"),
    [
        ("It is fine.\nRating: 4, somewhat informative", 4),
        ("RATING: 0", 0),
        ("Rating: 3 or Rating: 2", None),  # two
        ("rating: 10", 1),  # as the scripts read it
        ("four of six", None),
        ("", None),
        (None, None),
    ],
)
def test_rating(review, number):
    assert rating(review) == number


def test_verdict():
    assert [verdict(review) for review in ("so [[A]]", "[[B]] not [[A]]", "[[C]]")] == [0.0, 1.0, 0.5]
    assert math.isnan(verdict("A is better")) and math.isnan(verdict(None))


def test_a_review_that_fails_is_missing_here_and_0_there():
    reviews = ["Rating: 6", "Rating: 2", "Rating: 4", "no idea", None]
    scores = rating_scores(reviews, kinds=["attribute", "counting", "attribute", "counting", "counting"])
    assert scores.values["score"].value == 4.0  # (6 + 2 + 4) / 3
    assert scores.values["hallucination"].value == 1 / 3
    assert scores.values["informativeness"].value == pytest.approx((3 + 2 + 1) / 3 / 3)
    assert scores.values["score/attribute"].value == 5.0 and scores.values["score/counting"].value == 2.0
    assert "hallucination/attribute" not in scores.values
    assert scores.counts == {"answers": 5, "missing": 1, "unparsed": 1}
    published = {name: value for name, value in scores.published.items() if not name.startswith("type")}
    assert published == {"Average score": 2.4, "Hallucination rate": 0.6, "Informativeness": 40.0}


def test_types_go_by_order_in_the_script():
    scores = rating_scores([f"Rating: {number % 7}" for number in range(16)])
    assert scores.published["type 0"] == (0 + 1) / 2  # questions 0 and 8
    assert scores.published["type 7"] == (0 + 1) / 2  # 7 and 15


def test_reviews_are_asked_for_once(tmp_path):
    contents = []

    def judge(messages):
        contents.append(messages[0]["content"])
        return None if messages[0]["content"] == "silence" else f"about {messages[0]['content']}"

    file = tmp_path / "deep" / "reviews.jsonl"
    say = lambda *words: [[{"role": "user", "content": word}] for word in words]  # noqa: E731
    assert ask_all(remembering(judge, file), [*say("a", "silence"), None, *say("b")]) == ["about a", None, None, "about b"]
    file.write_text(file.read_text() + '{"asked": "torn')
    again = remembering(judge, file)
    assert ask_all(again, say("b", "a", "silence", "c")) == ["about b", "about a", None, "about c"]
    assert sorted(contents) == ["a", "b", "c", "silence", "silence"]  # what is missing is asked for again
    third = remembering(lambda messages: pytest.fail("asked again"), file)
    assert ask_all(third, say("a", "c")) == ["about a", "about c"]
    other = remembering(lambda messages: "another", file, who="another judge")
    assert ask_all(other, say("a")) == ["another"] and ask_all(third, say("a")) == ["about a"]
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if "another" not in line))
    assert len([line for line in file.read_text().splitlines() if '"review"' in line]) == 3
    assert json.loads(file.read_text().splitlines()[0])["review"].startswith("about")
