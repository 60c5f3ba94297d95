"""A reward on a server says what it says here, or nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.types import UserError
from tests.helpers.processes import together

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from tests.helpers.reward_server import RewardServer

PROMPTS = ["a fox", "two dogs", "a fox"]
ONCE = {"retries": 1, "backoff": 0.0, "longest_wait": 0.0, "failures": 1, "timeout": 300.0}


def brightness(outputs: Tensor, prompts: list[str]) -> Tensor:
    return outputs.flatten(1).mean(1)


def equals(outputs, prompts, answer):
    return [float(output == wanted) for output, wanted in zip(outputs, answer, strict=True)]


def several(outputs, prompts, **columns):
    words = [float(len(text.split())) if text else None for text in outputs]
    return {"letters": [float(len(text)) for text in outputs], "words": words}


class Linear:
    """A reward with weights, that counts its calls and the rows of each."""

    def __init__(self, seed: int = 0):
        self.layer = torch.nn.Linear(3, 1).requires_grad_(False)
        torch.nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(seed))
        torch.nn.init.zeros_(self.layer.bias)
        self.rows, self.steps = list[int](), list[int]()

    def at(self, step: int) -> None:
        self.steps.append(step)

    def __call__(self, outputs: Tensor, prompts: list[str]) -> Tensor:
        self.rows.append(len(prompts))
        return self.layer(outputs).squeeze(1)


@pytest.fixture
def serving():
    servers = []

    def start(reward, name="it", **more):
        servers.append(RewardServer({name: reward, "other": brightness}, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def client(server, reward="it", **more):
    return mm.rewards.served(url=server.url, reward=reward, **{"asking": ONCE, **more})


def test_tensors_are_scored_as_they_are_here_to_the_bit(serving):
    reward, rng = client(serving(brightness)), torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for shape in ((3, 3, 4, 5), (3, 1, 4, 4), (3, 2, 3, 4, 4), (3, 7)):
            outputs = torch.rand(shape, generator=rng).to(dtype)
            scores = reward(outputs, PROMPTS)
            assert scores.dtype == torch.float64 and torch.equal(scores, brightness(outputs, PROMPTS).double())


def test_png_is_eight_bits(serving):
    server, outputs = serving(brightness), torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    eight = (outputs * 255).round() / 255
    for some, rounded in ((outputs, eight), (outputs[:, :1], eight[:, :1]), (outputs[:, None], eight[:, None])):
        scores = client(server, pixels="png")(some, PROMPTS)
        assert torch.equal(scores, brightness(rounded, PROMPTS).double()) and not torch.equal(scores, brightness(some, PROMPTS).double())
    with pytest.raises(UserError, match=r"pixels outside of 0\.\.1"):
        client(server, pixels="png")(outputs + 1, PROMPTS)


def test_texts_columns_parts_and_pictures_in_prompts(serving):
    texts = ["a fox", "two", ""]
    answers = {"answer": ["a fox", "dogs", "x"], "unread": [object()] * 3}
    assert client(serving(equals))(texts, PROMPTS, **answers).tolist() == [1.0, 0.0, 0.0]
    with pytest.warns(UserWarning, match=r"1 of 3 answers are missing: 1 x the server: the reward has no score of it"):
        parts = client(serving(several))(texts, PROMPTS)
    assert parts["letters"].tolist() == [5.0, 3.0, 0.0] and parts["words"].tolist()[:2] == [2.0, 1.0] and parts["words"][2].isnan()
    by_word = mm.rewards.by_segment(mm.rewards.length(2), unit="word")
    assert client(serving(by_word))(texts[:2], PROMPTS[:2]) == by_word(texts[:2], PROMPTS[:2])
    with pytest.raises(UserError, match=r"served \(it\): reads the column 'answer' of the prompts; they have wrong"):
        client(serving(equals))(texts, PROMPTS, wrong=[1, 2, 3])


def test_a_conversation_s_pictures_go_along_as_files(serving, tmp_path):
    from PIL import Image

    path = tmp_path / "red.png"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path)
    prompt = [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "what?"}]}]

    def redness(outputs, prompts):
        from mmalign.media import Limits, image

        return [float(image(prompt[0]["content"][0]["image"], Limits())[0].mean()) for prompt in prompts]

    assert client(serving(redness))(["x"], [prompt]).tolist() == [1.0]


def test_what_a_reward_says_against_a_question_stops_and_what_it_raises_is_missing(serving):
    def refuses(outputs, prompts):
        raise UserError("takes other outputs")

    def fails(outputs, prompts):
        raise ValueError("of no\nuse")

    with pytest.raises(UserError, match=r"asking: HTTP 422 from 127\.0\.0\.1: takes other outputs; what the reward says"):
        client(serving(refuses))(["x"], ["p"])
    server = serving(fails)
    reward = client(server)
    with pytest.warns(UserWarning, match="2 x the server: raised ValueError: of no use"):
        assert reward(["x", "y"], ["p", "q"]).isnan().all()
    assert reward.state.client.counts == {"asked": 2, "missing": 2, "the server: raised ValueError: of no use": 2} and server.questions == 1


def edited(**change):
    """The answer with some of it changed."""
    return lambda number, answer: json.dumps({**json.loads(answer), **change}).encode()


@pytest.mark.parametrize(
    ("change", "reason", "questions"),
    [
        (edited(scores={"": [1.0]}), "1 scores for 3 rows", 2),
        (edited(scores={"": [1.0, 2.0, 3.0, 4.0]}), "4 scores for 3 rows", 2),
        (edited(scores=[1.0, 2.0, 3.0]), "an answer of another shape", 2),
        (edited(scores={"": "123"}), "an answer of another shape", 2),
        (edited(scores={"": [1.0, True, "3"]}), "an answer with scores that are no numbers", 2),
        (edited(reward="other"), "an answer of another shape", 2),
        (edited(scores={"": [1.0, math.nan, 3.0]}), "no JSON", 2),
        (lambda number, answer: answer[:-9], "no JSON", 2),
        (lambda number, answer: "cut", "no connection (RemoteProtocolError)", 2),
        (lambda number, answer: (503, b"busy"), "HTTP 503", 2),
        (lambda number, answer: (400, b"no"), "HTTP 400", 1),
    ],
)
def test_a_corrupt_answer_is_asked_for_again_and_then_missing(serving, change, reason, questions):
    server, outputs = serving(brightness), torch.rand(3, 3, 2, 2)
    right = brightness(outputs, PROMPTS).double()
    if questions > 1:  # once
        server.change = lambda number, answer: change(number, answer) if number == 1 else answer
        assert torch.equal(client(server)(outputs, PROMPTS), right) and server.questions == 2
    server.change, server.questions, reward = change, 0, client(server)
    with pytest.warns(UserWarning, match="3 of 3 answers are missing"):
        assert reward(outputs, PROMPTS).isnan().all()
    assert reward.state.client.counts == {"asked": 3, "missing": 3, reason: 3} and server.questions == questions
    server.change = lambda number, answer: answer
    assert torch.equal(reward(outputs, PROMPTS), right) and reward.state.client.counts["missing"] == 3


def test_a_slow_answer_is_missing_and_a_server_that_was_silent_is_asked_once(serving):
    server, outputs = serving(brightness), torch.rand(3, 3, 2, 2)
    server.change = lambda number, answer: 0.6
    slow = client(server, asking={**ONCE, "timeout": 0.2, "retries": 1})
    with pytest.warns(UserWarning, match="3 x timeout"):
        assert slow(outputs, PROMPTS).isnan().all()
    assert server.questions == 2
    assert slow(outputs, PROMPTS).isnan().all() and server.questions == 3  # no second try, as it was silent
    slow.state.client._client.timeout = 300.0  # an answer may take its time
    slow.state.client.settings = replace(slow.state.client.settings, timeout=300.0)
    server.change = lambda number, answer: answer
    assert not slow(outputs, PROMPTS).isnan().any()
    server.kill()
    with pytest.warns(UserWarning, match="no connection"):
        assert slow(outputs, PROMPTS).isnan().all()
    assert slow.state.client.counts["missing"] == 9


def test_other_weights(serving):
    first, second, outputs = serving(Linear(0)), serving(Linear(1)), torch.rand(3, 3)
    (known,), (other,) = ([server.app.state.scoring.weights["it"]] for server in (first, second))
    assert len({known, other, "none"}) == 3 and serving(brightness).app.state.scoring.weights["it"] == "none"
    assert client(first, weights=known)(outputs, PROMPTS).isfinite().all()
    with pytest.raises(UserError, match=f"served: it answers by weights {other}, takes {known}"):
        client(second, weights=known)(outputs, PROMPTS)
    missing = client(second, weights=known, other_weights="missing")
    with pytest.warns(UserWarning, match="3 x other weights"):
        assert missing(outputs, PROMPTS).isnan().all()
    taken = client(second, weights=known, other_weights="take")
    assert torch.equal(taken(outputs, PROMPTS), Linear(1)(outputs, PROMPTS).double())
    swapped = client(first)  # those of the first answer, also after a resume
    swapped(outputs, PROMPTS)
    resumed = client(second)
    resumed.state.load(json.loads(json.dumps(swapped.state.dump())))
    with pytest.raises(UserError, match=f"by weights {other}, takes {known}"):
        resumed(outputs, PROMPTS)


def test_rows_are_asked_apart_and_kept_only_where_it_is_said_that_they_are_alone(serving):
    reward, outputs = Linear(), torch.rand(3, 3)
    server = serving(reward, together=1)
    whole = client(server)
    for _ in range(2):
        whole(outputs, PROMPTS)
    assert reward.rows == [3, 3]
    apart = client(server, rows={"most": 2, "cache": 2})
    scores = apart(outputs, PROMPTS)
    assert sorted(reward.rows[2:]) == [1, 2] and torch.allclose(scores, whole(outputs, PROMPTS))
    reward.rows.clear()
    assert torch.equal(apart(outputs[1:], PROMPTS[1:]), scores[1:]) and reward.rows == []
    apart(outputs[:1], PROMPTS[:1])  # which had to go
    apart(outputs[2:], PROMPTS[2:])
    assert reward.rows == [1] and len(apart.state._cache) == 2
    apart(outputs[:1], ["another prompt"])
    assert reward.rows == [1, 1] and apart.state.client.counts == {"asked": 8, "missing": 0}
    apart.at(1)  # a reward that changes is asked again, and told the step
    apart(outputs[:1], ["another prompt"])
    assert reward.rows == [1, 1, 1] and reward.steps == [1]


def test_settings_are_refused_before_anything_is_sent(serving, monkeypatch):
    for settings, says in (
        ({}, "served: takes either url, or start"),
        ({"url": "http://a", "start": {"config": "x.yaml"}}, "served: takes either url, or start"),
        ({"url": "ftp://a"}, r"served\.url: got 'ftp://a', takes http\(s\)://HOST:PORT"),
        ({"url": "http://a.example", "asking": {"key_env": "SOME_KEY"}}, r"served\.url: .*a key goes over https, or to this machine"),
        ({"url": "http://a", "asking": {"key_env": "NO_SUCH_KEY"}}, r"asking\.key_env: the environment has no NO_SUCH_KEY"),
        ({"url": "http://a", "rows": {"most": 0}}, r"rows\.most: got 0"),
    ):
        monkeypatch.setenv("SOME_KEY", "very-secret")
        with pytest.raises(UserError, match=says):
            mm.rewards.served(**settings)
    server = serving(brightness, token="very-secret")
    with pytest.raises(UserError, match=r"HTTP 401 from 127\.0\.0\.1: takes the server's token.*; takes another key"):
        client(server)(torch.rand(3, 3), PROMPTS)
    keyed = {"asking": {**ONCE, "key_env": "SOME_KEY"}}
    assert client(server, **keyed)(torch.rand(3, 3), PROMPTS).isfinite().all()
    for name, says in ((None, "got none, the server has it, other"), ("its", "got 'its', the server has it, other")):
        with pytest.raises(UserError, match=rf"served\.reward: {says}"):
            client(server, name, **keyed)(torch.rand(3, 3), PROMPTS)


def test_each_process_asks_about_its_own_rows(serving, tmp_path):
    server = serving(brightness)

    def act(rank: int) -> None:
        outputs = torch.full((rank + 1, 3), float(rank))
        assert client(server)(outputs, ["p"] * (rank + 1)).tolist() == [float(rank)] * (rank + 1)

    assert [code for code, _ in together(2, act, tmp_path)] == [0, 0] and server.questions == 2


def test_an_oracle_on_a_server_says_what_it_says_here(serving):
    """Two groups, one of whose rows it knows nothing of; another group's rows are never compared."""
    from mmalign.serving.oracles import Compared

    def longer(outputs, prompts, group, *, bonus):
        sizes = torch.tensor([math.nan if text == "?" else float(len(text) + more) for text, more in zip(outputs, bonus, strict=True)])
        return torch.sigmoid(sizes[:, None] - sizes[None, :]).double()  # whatever the group, and of each with itself

    outputs, group, columns = ["a", "bbb", "cc", "d", "?"], torch.tensor([0, 0, 1, 1, 1]), {"bonus": [0, 0, 3, 0, 0]}
    same = (group[:, None] == group[None, :]).fill_diagonal_(False)
    here = torch.where(same, longer(outputs, ["p"] * 5, group, **columns), torch.nan)
    oracle = mm.rewards.served_pairs(url=serving(Compared(longer), name="oracle").url, asking=ONCE)
    torch.testing.assert_close(oracle(outputs, ["p"] * 5, group, **columns), here, equal_nan=True, rtol=0, atol=0)
    with pytest.raises(UserError, match="reads the column 'bonus'"):
        oracle(outputs, ["p"] * 5, group)
    with pytest.raises(UserError, match="the server has it, other"):
        mm.rewards.served_pairs(url=serving(brightness).url, asking=ONCE)(outputs, ["p"] * 5, group)
    with pytest.raises(UserError, match="is a reward of one number, takes an oracle"):
        mm.rewards.served_pairs(url=serving(lambda outputs, prompts: [1.0] * 5, name="oracle").url, asking=ONCE)(outputs, ["p"] * 5, group)


def test_a_dead_server_of_an_oracle_is_missing_and_counted(serving):
    from mmalign.serving.oracles import Compared

    server = serving(Compared(lambda outputs, prompts, group: torch.full((2, 2), 0.5)), name="oracle")
    server.change = lambda number, answer: (500, b"{}")
    with pytest.warns(UserWarning, match="oracle"):
        wins = mm.rewards.served_pairs(url=server.url, asking=ONCE)(["a", "b"], ["p"] * 2, torch.zeros(2, dtype=torch.int64))
    assert wins.isnan().all() and wins.shape == (2, 2)
