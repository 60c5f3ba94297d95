"""Divide and conquer: what is taken apart, what is asked of whom, and what is missing."""

from __future__ import annotations

import pytest

import mmalign as mm
from mmalign.types import UserError
from tests.helpers.fake_server import FakeServer, likely, written
from tests.helpers.tiny_models import images
from tests.rewards.test_judges import at, said

QUESTIONS = {
    "a dog": "1. Is there a dog?\n2) Is it red?",
    "a cat": "Here they are:\n- Is there a cat?\n- Is it red?\n- Is there a cat?",
    "hm": "NONE.",
}


@pytest.fixture
def server():
    fake_server = FakeServer(answered)
    yield fake_server
    fake_server.kill()


def answered(body):
    text = said(body)
    if "<answer>" in text:
        return written(next(lines for words, lines in QUESTIONS.items() if words in text.split("<answer>")[1]))
    return likely(**({"Yes": 0.2, "yes": 0.4, "no": 0.3} if "red" in text else {"No": 0.7, "Yes": 0.1} if "cat" in text else {"yes": 1.0}))


def asked(picture):
    return [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image", "image": picture}]}]


def test_false_claims_are_counted_and_each_is_asked_alone_with_the_picture(server):
    reward = mm.rewards.claims(server=at(server))
    prompts = [asked(picture) for picture in images()[:3]]
    assert reward(["a dog", "a cat", "hm"], prompts).tolist() == [0.0, -1.0, 0.0]
    checks = [body for body in server.requests if "<answer>" not in said(body)]
    assert len(checks) == 4  # the cat, asked about twice, is checked once
    for body in checks:
        kinds = [part["type"] for part in body["messages"][0]["content"]]
        assert kinds == ["image_url", "text", "text"] and body["max_tokens"] == 1 and "What is it" not in said(body)
    assert mm.rewards.claims(server=at(server), least=0.7)(["a dog"], prompts[:1]).tolist() == [-1.0]  # yes, by 2/3


def test_claims_of_a_text_are_checked_by_what_a_model_knows(server):
    reward = mm.rewards.claims(server=at(server), by="knowledge", of="precision")
    assert reward(["a dog", "a cat", "hm"], ["What is it?"] * 3).tolist() == [1.0, 0.5, 1.0] and (reward.low, reward.high) == (0, 1)
    checks = [body for body in server.requests if "<answer>" not in said(body)]
    assert len(checks) == 4 and all("picture" not in said(body) and "What is it" not in said(body) for body in server.requests)
    with pytest.raises(UserError, match=r"claims\.by: got 'faith'"):
        mm.rewards.claims(server=at(server), by="faith")


def test_two_servers_share_the_work(server):
    other = FakeServer(answered)
    try:
        mm.rewards.claims(server=at(server), splitter=at(other))(["a dog"], [asked(images()[0])])
        assert len(other.requests) == 1 and len(server.requests) == 2
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("There is a dog.", "no list of questions"),
        ("Is there a dog?\nIt is red.\nSo it is.", "no list of questions"),
        ("", "no list of questions"),
        ("\n".join(f"Is there dog {number}?" for number in range(4)), "more than 3 claims"),
    ],
)
def test_an_answer_that_cannot_be_taken_apart_is_missing(server, lines, reason):
    server.answer = lambda body: written(lines)
    with pytest.warns(UserWarning, match=reason):
        assert mm.rewards.claims(server=at(server), most=3)(["a dog"], [asked(images()[0])]).isnan().all()


def test_a_claim_that_cannot_be_checked_makes_the_answer_missing(server, tmp_path):
    server.answer = lambda body: (
        written("Is it red?\nIs it big?") if "<answer>" in said(body) else likely(**({"yes": 1.0} if "big" in said(body) else {"It": 1.0}))
    )
    with pytest.warns(UserWarning, match="most of the probability is on other tokens"):
        assert mm.rewards.claims(server=at(server))(["a dog"], [asked(images()[0])]).isnan().all()
    server.answer = answered
    gone = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "gone.png")}]}]
    with pytest.warns(UserWarning, match="not asked: "):
        scores = mm.rewards.claims(server=at(server))(["a dog", "a dog", "a dog"], [asked(images()[0]), "no picture", gone])
    assert scores.isnan().tolist() == [False, True, True]


def test_mistakes(server):
    for wrong in ({"least": 0.0}, {"most": 0}, {"max_tokens": 0}):
        with pytest.raises(UserError, match=r"claims[.:].*got"):
            mm.rewards.claims(server=at(server), **wrong)
    with pytest.raises(UserError, match=r"claims\.splitter\.model: missing, splitter needs it"):
        mm.rewards.claims(server=at(server), splitter={"url": "x"})
