"""Judges on a server: expected scores, both orders, rubrics, critiques; and what cannot be read is missing."""

from __future__ import annotations

import base64
import io
import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.rewards.judges._judging import drawn, mass, written_score
from mmalign.serving.chat import Answer, Unreadable
from mmalign.types import UserError
from tests.helpers.fake_server import FakeServer, likely, written
from tests.helpers.tiny_models import images


@pytest.fixture
def server():
    fake_server = FakeServer(lambda body: written(""))
    yield fake_server
    fake_server.kill()


def said(body):
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def at(server, **more):
    return {"url": server.url, "model": "m", "backoff": 0.0, "failures": 1, **more}


def test_the_score_is_the_expected_digit(server):
    server.answer = lambda body: likely(**({" 4": 0.5, "5": 0.2, "4": 0.1, "The": 0.2} if "good" in said(body) else {"2": 1.0}))
    reward = mm.rewards.judge(server=at(server))
    scores = reward(["good", "bad"], ["question", [{"role": "user", "content": "other"}]])
    assert scores.tolist() == pytest.approx([(4 * 0.6 + 5 * 0.2) / 0.8, 2.0])
    assert (reward.low, reward.high, reward.differentiable) == (1.0, 5.0, False)
    first = next(body for body in server.requests if "good" in said(body))
    assert first["top_logprobs"] == 20 and first["max_tokens"] == 1 and first["temperature"] == 0.0
    assert said(first).index("question") < said(first).index("good") < said(first).index("from 1 (worst) to 5 (best)")


def test_little_probability_on_digits_is_no_score(server):
    server.answer = lambda body: likely(**{"I": 0.6, "5": 0.3})
    with pytest.warns(UserWarning, match="1 x no score: most of the probability is on other tokens"):
        assert mm.rewards.judge(server=at(server))(["x"], ["p"]).isnan().all()
    server.answer = lambda body: likely(**{"7": 1.0})  # outside of the scale
    assert mm.rewards.judge(server=at(server))(["x"], ["p"]).isnan().all()


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7), ("**7**", 7), (" 7.5\n", 7.5), ("Score: 7", 7), ("Good.\n**Score:** 7/10", 7), ("score = 7. Thanks", 7),
        ("Score: 7. Score: 7", 7),
        ("10", 10), ("7/100", None), ("Score: 7/100", None), ("Score: 11", None), ("-1", None), ("Score: -1", None), ("Score: 1,000", None),
        ("Score: 70%", None), ("Score: 7e3", None), ("I give it 7", None), ("", None), ("Score: 7 ... Score: 8", None), ("seven", None),
        ("Score: 7/10/10", None),
    ],
)  # fmt: skip
def test_written_scores_are_read_or_missing_never_clipped(text, score):
    if score is None:
        with pytest.raises(Unreadable):
            written_score(Answer(text, (), False), 0, 10)
    else:
        assert written_score(Answer(text, (), False), 0, 10) == score


def test_a_server_without_log_probabilities(server):
    server.answer = lambda body: written("Score: 8")
    assert mm.rewards.judge(server=at(server), read="written", high=10)(["x"], ["p"]).tolist() == [8]
    assert "logprobs" not in server.requests[0]


def test_images_go_whole_as_png(server):
    from PIL import Image

    server.answer = lambda body: likely(**{"3": 1.0})
    assert mm.rewards.judge(server=at(server, at_once=1))(images(), ["p"] * 4).tolist() == [3] * 4
    parts = server.requests[1]["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert len(urls) == 1 and urls[0].startswith("data:image/png;base64,")
    drawn_back = Image.open(io.BytesIO(base64.b64decode(urls[0].split(",")[1])))
    pixels = torch.tensor(list(drawn_back.tobytes())).view(48, 40, 3).permute(2, 0, 1) / 255
    assert torch.equal(pixels, images()[1])
    mm.rewards.judge(server=at(server))(images()[None, :2], ["p"])
    assert sum(part["type"] == "image_url" for part in server.requests[-1]["messages"][0]["content"]) == 2  # a video's frames
    talk = [{"role": "user", "content": [{"type": "image", "image": images()[0]}, {"type": "text", "text": "what is it?"}]}]
    mm.rewards.judge(server=at(server))(["a ramp"], [talk])
    assert [part["type"] for part in server.requests[-1]["messages"][0]["content"]].count("image_url") == 1
    with pytest.raises(UserError, match="judge: got int, takes strings"):
        mm.rewards.judge(server=at(server))([3], ["p"])


def test_pictures_come_by_path_or_address_and_a_broken_one_is_a_missing_answer(server, tmp_path):
    from PIL import Image

    from mmalign.media import address

    server.answer = lambda body: likely(**{"3": 1.0})
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    talks = [
        [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / name)}, {"type": "text", "text": "what is it?"}]}]
        for name in ("good.png", "bad.png", "none.png")
    ]
    talks.append([{"role": "user", "content": [{"type": "image", "url": address(Image.new("RGB", (4, 4)))}]}])  # as tools show them
    quarantine = tmp_path / "missing.jsonl"
    with pytest.warns(UserWarning, match="2 of 4 answers are missing"):
        scores = mm.rewards.judge(server=at(server, quarantine=str(quarantine)))(["red"] * 4, talks)
    assert scores.isnan().tolist() == [False, True, True, False] and len(server.requests) == 2
    lines = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["what is it?"] * 2 and all("image cannot be used" in line["reason"] for line in lines)


def test_principles_are_told_and_the_same_for_a_prompt(server):
    server.answer = lambda body: likely(**{"3": 1.0})
    rules = [f"rule {number}" for number in range(8)]
    mm.rewards.judge(server=at(server, at_once=1), principles=rules, principles_at_once=2)(["x", "y"], ["p", "p"])
    rules_sent = [[rule for rule in rules if rule in said(body)] for body in server.requests]
    assert rules_sent[0] == rules_sent[1] and len(rules_sent[0]) == 2
    assert len({tuple(drawn(rules, 2, str(number))) for number in range(20)}) > 5
    assert drawn(rules, None, "p") == rules


def test_a_critic_is_scored_at_the_digit_after_its_critique(server):
    def answer(body):
        text = "A 1 for style, and: score 5?\nScore: "
        choice = written(text)
        choice["message"]["content"] = text + "4"
        choice["logprobs"]["content"] += likely(**{"4": 0.6, "2": 0.3})["logprobs"]["content"]
        return choice

    server.answer = answer
    scores = mm.rewards.critic(server=at(server))(["x"], ["p"])
    assert scores.tolist() == pytest.approx([(4 * 0.6 + 2 * 0.3) / 0.9])
    server.answer = lambda body: written("I would go on and on", finish="length")
    with pytest.warns(UserWarning, match="cut off at max_tokens"):
        assert mm.rewards.critic(server=at(server))(["x"], ["p"]).isnan().all()
    replies = iter(["Score: 2", "nothing", "Score: 3"])
    server.answer = lambda body: written(next(replies))
    with pytest.warns(UserWarning, match="1 of 3"):
        scores = mm.rewards.critic(server=at(server, at_once=1), votes=3, temperature=1.0, read="written")(["x"], ["p"])
    assert scores.tolist() == [2.5]
    with pytest.raises(UserError, match="votes above 1 with a temperature"):
        mm.rewards.critic(server=at(server), votes=3)


def longer_first(body):
    """Prefers the longer response, and whatever it reads first."""
    text = said(body)
    first, second = (len(text.split(f"<response {letter}>\n")[1].split(f"\n</response {letter}>")[0]) for letter in "AB")
    p = 1 / (1 + math.exp(-(first - second + 1)))
    return likely(A=p * 0.9, B=(1 - p) * 0.9)


def test_both_orders_are_averaged(server):
    server.answer = longer_first
    oracle = mm.rewards.judge_pairs(server=at(server))
    outputs, group = ["a", "aaa", "a", "aa", "a"], torch.tensor([0, 0, 0, 1, 1])
    scores = oracle(outputs, ["p"] * 5, group)
    s = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert scores[1, 0] == pytest.approx((s(3) + 1 - s(-1)) / 2)
    assert scores[0, 1] == pytest.approx(1 - scores[1, 0].item())
    assert scores[0, 2] == pytest.approx(0.5)  # equal ones, although it always likes the first
    assert scores[:3, 3:].isnan().all() and scores.diagonal().isnan().all() and not scores[3, 4].isnan()
    assert len(server.requests) == 2 * 4


def test_a_pair_that_misses_one_order_is_missing(server):
    server.answer = longer_first
    server.misbehave = lambda number: (400, b"") if number == 2 else None
    with pytest.warns(UserWarning, match="1 of 6"):
        scores = mm.rewards.judge_pairs(server=at(server, at_once=1))(["a", "aa", "aaa"], ["p"] * 3, torch.zeros(3, dtype=torch.int64))
    assert scores.isnan().sum() == 3 + 2 and scores[0, 1].isnan() and scores[1, 0].isnan()


def test_opponents_in_a_ring(server):
    server.answer = longer_first
    scores = mm.rewards.judge_pairs(server=at(server), opponents=1)(["a"] * 5, ["p"] * 5, torch.zeros(5, dtype=torch.int64))
    assert (~scores.isnan()).sum(1).tolist() == [2] * 5 and len(server.requests) == 10


def test_ties_and_written_choices(server):
    server.answer = lambda body: likely(A=0.2, B=0.2, C=0.6)
    table = mm.rewards.judge_pairs(server=at(server), ties=True)(["a", "b"], ["p"] * 2, torch.zeros(2, dtype=torch.int64))
    assert table[0, 1] == pytest.approx(0.5)
    with pytest.warns(UserWarning, match="most of the probability"):
        table = mm.rewards.judge_pairs(server=at(server))(["a", "b"], ["p"] * 2, torch.zeros(2, dtype=torch.int64))
    assert table.isnan().all()
    server.answer = lambda body: written("**A**" if "<response A>\ngood" in said(body) else "B")
    reward = mm.rewards.judge_against(server=at(server), read="written")
    assert reward(["good", "bad"], ["p"] * 2, answer=["poor", "good"]).tolist() == [1.0, 0.0]
    server.answer = lambda body: written("Both are fine")
    with pytest.warns(UserWarning, match="no choice in the answer"):
        assert reward(["good"], ["p"], answer=["poor"]).isnan().all()


def test_published_dimensions_are_asked_each_by_itself(server):
    def answer(body):
        return likely(
            **{next(digit for word, digit in (("visual", "5"), ("motion", "1"), ("fits the text", "3")) if word in said(body)): 1.0}
        )

    server.answer = answer
    reward = mm.rewards.judge_dimensions(server=at(server))
    assert reward(["x"], ["p"]).tolist() == [3.0] and len(server.requests) == 3
    parts = mm.rewards.judge_dimensions(server=at(server), apart=True)(["x"], ["p"])
    assert {name: one.tolist() for name, one in parts.items()} == {"VQ": [5.0], "MQ": [1.0], "TA": [3.0]}
    own = mm.rewards.judge_dimensions(server=at(server), dimensions={"a": "the visual side", "b": "the motion"}, apart=True)(["x"], ["p"])
    assert {name: one.tolist() for name, one in own.items()} == {"a": [5.0], "b": [1.0]}
    with pytest.raises(UserError, match="got 'videoreward', takes video_reward, mm_rlhf, or name"):
        mm.rewards.judge_dimensions(server=at(server), dimensions="videoreward")


def test_weighted_questions_are_a_sum_of_signs(server, tmp_path):
    """Yes to the first, no to the second, unsure (3 to 1) of the last: 0.5 * 1 + (-2) * (-1) + 1 * 0.5; one with weight 0 is not asked."""
    (tmp_path / "qa.txt").write_text("Is it sharp?\nIs it dull?\n\nIs it odd?\nIs it large?\n")
    (tmp_path / "weight.json").write_text("[0.5, -2.0, 0, 1]")
    says = {"sharp": {"Yes": 1.0}, "dull": {"No": 1.0}, "large": {"Yes": 0.6, "No": 0.2}}
    server.answer = lambda body: likely(**next(one for word, one in says.items() if word in said(body)))
    reward = mm.rewards.judge_questions(server=at(server), questions=str(tmp_path / "qa.txt"), weights=str(tmp_path / "weight.json"))
    assert reward(["x"], ["p"]).tolist() == pytest.approx([3.0]) and (reward.low, reward.high) == (-3.5, 3.5)
    assert len(server.requests) == 3
    (tmp_path / "weight.json").write_text("[0.5]")
    with pytest.raises(UserError, match="judge_questions: got 4 questions and 1 weights"):
        mm.rewards.judge_questions(server=at(server), questions=str(tmp_path / "qa.txt"), weights=str(tmp_path / "weight.json"))


def test_a_rubric_is_a_mean_of_its_criteria(server, tmp_path):
    chances = {"units": 0.9, "short": 0.6, "rude": 0.2}
    server.answer = lambda body: likely(**next({"Yes": p * 0.8, "No": (1 - p) * 0.8} for name, p in chances.items() if name in said(body)))
    criteria = {name: f"Is it {name}?" for name in chances}
    weights = {"units": 2.0, "rude": -1.0}
    scores = mm.rewards.judge_rubric(server=at(server), criteria=criteria, weights=weights)(["x"], ["p"])
    assert scores.tolist() == pytest.approx([(2 * 0.9 + 0.6 + 0.8) / 4])
    apart = mm.rewards.judge_rubric(server=at(server), criteria=criteria, apart=True)(["x", "y"], ["p"] * 2)
    assert {name: values.tolist() for name, values in apart.items()} == {name: pytest.approx([p, p]) for name, p in chances.items()}
    chances["units"] = 0.4
    assert mm.rewards.judge_rubric(server=at(server), criteria=criteria, required=["units"])(["x"], ["p"]).tolist() == [0]
    own = mm.rewards.judge_rubric(server=at(server))
    assert own(["x"], ["p"], rubric=["Is it short?\n\nIs it units?"]).tolist() == pytest.approx([0.5])
    server.misbehave = lambda number: (400, b"") if number % 3 == 0 else None
    with pytest.warns(UserWarning):
        assert mm.rewards.judge_rubric(server=at(server), criteria=criteria)(["x"], ["p"]).isnan().all()


def test_mass_counts_what_is_written_otherwise():
    assert mass({"Yes": math.log(0.4), " yes": math.log(0.2), "No": math.log(0.1)}, ["Yes", "No"]) == pytest.approx({"Yes": 0.6, "No": 0.1})


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda s: mm.rewards.judge(server=s, high=10), "takes low below high, single digits"),
        (lambda s: mm.rewards.judge(server=s, read="token"), r"judge\.read: got 'token'"),
        (lambda s: mm.rewards.judge_pairs(server=s, opponents=0), "opponents: got 0"),
        (lambda s: mm.rewards.judge_rubric(server=s, criteria={"a": "?"}, weights={"b": 1}), "'b' is no criterion; takes a"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says):
        build({"url": "http://127.0.0.1:9/v1", "model": "m"})


def test_edits_are_judged_beside_their_source(server, tmp_path):
    from PIL import Image

    server.answer = lambda body: likely(**({"4": 1.0} if "requested change made" in said(body) else {"2": 1.0}))
    reward = mm.rewards.judge_edit(server=at(server, at_once=1))
    assert reward(images()[:1], ["make it red"], source=[images()[1]]).tolist() == [3]
    shown = [part for part in server.requests[0]["messages"][0]["content"] if part["type"] == "image_url"]
    assert len(shown) == 2 and shown[0] != shown[1]
    parts = mm.rewards.judge_edit(server=at(server), apart=True)(images()[:1], ["make it red"], source=[images()[1]])
    assert {name: values.tolist() for name, values in parts.items()} == {"follows": [4], "looks": [2]}
    server.misbehave = lambda number: (400, b"") if number == 6 else None
    with pytest.warns(UserWarning):
        assert reward(images()[:1], ["make it red"], source=[images()[1]]).isnan().all()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "source.png")
    server.answer, server.misbehave = (lambda body: likely(A=0.9, B=0.1)), lambda number: None
    oracle = mm.rewards.judge_edit_pairs(server=at(server))
    table = oracle(images()[:2], ["make it red"] * 2, torch.zeros(2, dtype=torch.int64), source=[str(tmp_path / "source.png")] * 2)
    assert table[0, 1] == pytest.approx(0.5) and "better edit" in said(server.requests[-1])
    assert sum(part["type"] == "image_url" for part in server.requests[-1]["messages"][0]["content"]) == 3
