"""The client of chat completions: what is asked again, what is missing and why, and what stops a run."""

from __future__ import annotations

import json
import threading

import pytest

from mmalign.serving.chat import Unreadable, connect
from mmalign.types import UserError
from tests.helpers.fake_server import FakeServer, likely, written

TALKS = [[{"role": "user", "content": str(number)}] for number in range(6)]


def echo(body):
    return written(body["messages"][-1]["content"])


@pytest.fixture
def server():
    fake_server = FakeServer(echo)
    yield fake_server
    fake_server.kill()


def client(server, **settings):
    return connect("judge", {"url": server.url, "model": "m", "backoff": 0.0, "longest_wait": 0.0, **settings})


def ask(asked, talks=TALKS, **more):
    return asked.ask(talks, lambda answer: answer.text, max_tokens=4, **more)


def test_answers_stand_where_their_questions_stood(server):
    reward = client(server, body={"seed": 7})
    assert ask(reward, temperature=0.5) == ["0", "1", "2", "3", "4", "5"]
    sent = server.requests[0]
    assert (sent["path"], sent["model"], sent["seed"], sent["max_tokens"], sent["temperature"]) == ("/v1/chat/completions", "m", 7, 4, 0.5)
    assert "logprobs" not in sent and server.keys == [None] * 6
    assert reward.counts == {"asked": 6, "missing": 0}


def body(text):
    return json.dumps(text).encode()


def logprobs(*values, token="4"):
    top = [{"token": str(number), "logprob": value} for number, value in enumerate(values)]
    return {"message": {"content": token}, "logprobs": {"content": [{"token": token, "logprob": -1.0, "top_logprobs": top}]}}


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"<html>502 Bad Gateway</html>", "no JSON"),
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (body({"choices": [logprobs(float("nan"))]}), "no JSON"),
        (body([]), "no chat completion: takes one choice"),
        (body({"choices": []}), "no chat completion: takes one choice"),
        (body({"choices": [written("1"), written("2")]}), "no chat completion: takes one choice"),
        (body({"choices": [{"message": {"content": None}}]}), "no chat completion: takes a message with content"),
        (body({"choices": [{"message": {"content": "4"}}]}), "no log-probabilities"),
        (body({"choices": [logprobs("-1")]}), "no log-probabilities of tokens"),
        (body({"choices": [logprobs(0.5)]}), "no log-probabilities of tokens"),
        (body({"choices": [logprobs(-0.1, -0.1)]}), "probabilities of more than 1"),
        ((500, b"oops"), "HTTP 500"),
        ((429, b""), "HTTP 429"),
        ("close", "no connection (RemoteProtocolError)"),
    ],
)
def test_what_may_pass_is_asked_again_and_is_missing_where_it_stays(server, sent, reason):
    server.answer = lambda asked: likely(**{"4": 0.5, "5": 0.4})
    server.misbehave = lambda number: sent if number == 1 else None
    asked = client(server, retries=1, failures=1)
    assert asked.ask(TALKS[:1], lambda answer: answer.tokens[0].text, max_tokens=1, likely=20) == ["4"]
    assert asked.counts == {"asked": 1, "missing": 0} and len(server.requests) == 2
    server.misbehave = lambda number: sent
    with pytest.warns(UserWarning, match="judge: 1 of 1 answers are missing"):
        assert asked.ask(TALKS[:1], lambda answer: answer.tokens[0].text, max_tokens=1, likely=20) == [None]
    assert asked.counts == {"asked": 2, "missing": 1, reason: 1} and len(server.requests) == 4


def test_what_does_not_pass_is_not_asked_again(server, tmp_path):
    server.misbehave = lambda number: (400, b"prompt is too long")
    reward = client(server, failures=1, quarantine=str(tmp_path / "q" / "missing.jsonl"))
    with pytest.warns(UserWarning, match="6 x HTTP 400"):
        assert ask(reward, say=lambda row: {"prompt": row}) == [None] * 6
    assert len(server.requests) == 6
    lines = [json.loads(line) for line in (tmp_path / "q" / "missing.jsonl").read_text().splitlines()]
    assert lines == [{"reward": "judge", "reason": "HTTP 400", "prompt": row} for row in range(6)]


def test_an_answer_that_does_not_say_it_is_missing_and_not_asked_again(server):
    def read(answer):
        if int(answer.text) % 2:
            raise Unreadable("odd")
        return answer.text

    reward = client(server)
    with pytest.warns(UserWarning, match="3 of 6 answers are missing: 3 x odd"):
        assert reward.ask(TALKS, read, max_tokens=4) == ["0", None, "2", None, "4", None]
    assert reward.counts == {"asked": 6, "missing": 3, "odd": 3} and len(server.requests) == 6


def test_slow_and_endless_answers_end(server):
    server.misbehave = lambda number: 0.6
    reward = client(server, timeout=0.15, retries=0, failures=1)
    with pytest.warns(UserWarning, match="1 x timeout"):
        assert ask(reward, TALKS[:1]) == [None]
    server.misbehave = lambda number: b"x" * 5000
    reward = client(server, bytes=4096, failures=1)
    with pytest.warns(UserWarning, match=r"longer than server\.bytes"):
        assert ask(reward, TALKS[:1]) == [None]


def test_a_dead_server_is_not_waited_for_by_every_row(server):
    server.misbehave = lambda number: "close"
    reward = client(server, retries=0, at_once=2, failures=1)
    with pytest.warns(UserWarning):
        assert ask(reward, TALKS * 10) == [None] * 60
    assert len(server.requests) <= 2 * 2 + 2
    before = len(server.requests)
    assert ask(reward, TALKS) == [None] * 6
    assert len(server.requests) == before + 1  # one question to see whether it is back
    server.misbehave = lambda number: None
    assert ask(reward, TALKS) == ["0", "1", "2", "3", "4", "5"]
    assert reward.counts["asked"] == 72 and reward.counts["missing"] == 66


def test_too_much_missing_stops_the_run(server):
    server.misbehave = lambda number: (400, b"") if number % 2 else None
    with pytest.warns(UserWarning):
        assert len(ask(client(server, at_once=1), TALKS * 4)) == 24  # half of them, which is not more than half
    reward = client(server, at_once=1, failures=0.4)
    with (
        pytest.warns(UserWarning),
        pytest.raises(UserError, match=r"12 of the last 24 answers are missing .*at most 40% \(server\.failures\)"),
    ):
        ask(reward, TALKS * 4)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_user_has_to_mend_stops_at_once(server, status, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    server.misbehave = lambda number: (status, b"no access with\nvery-secret")
    with pytest.raises(UserError, match=rf"judge\.server: HTTP {status} from 127\.0\.0\.1: no access with \*\*\*; takes another") as caught:
        ask(client(server, key_env="SOME_KEY", at_once=1), TALKS * 10)
    assert "very-secret" not in str(caught.value) and server.keys == ["Bearer very-secret"]


def test_the_key_is_nowhere_but_in_the_header(server, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    reward = client(server, key_env="SOME_KEY", quarantine=str(tmp_path / "q.jsonl"), retries=0, failures=1)
    assert ask(reward, TALKS[:1]) == ["0"] and server.keys == ["Bearer very-secret"]
    server.misbehave = lambda number: (500, b"very-secret")
    with pytest.warns(UserWarning) as caught:
        ask(reward, TALKS[:1])
    text = (tmp_path / "q.jsonl").read_text() + str([str(item.message) for item in caught]) + repr(reward.settings) + str(reward.counts)
    assert "very-secret" not in text + "".join(capfd.readouterr())


def test_many_at_once(server):
    gate = threading.Barrier(4, timeout=300)

    def together(asked):
        gate.wait()  # passes only where four requests are there at the same time
        return echo(asked)

    server.answer = together
    assert ask(client(server, at_once=4, retries=0), TALKS[:4]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "ftp://x/v1"}, r"judge\.server\.url: got 'ftp://x/v1', takes http"),
        ({"url": "nothing"}, r"judge\.server\.url"),
        ({"url": "http://name:word@host/v1"}, r"judge\.server\.url"),
        ({"url": "http://example.org/v1", "key_env": "SOME_KEY"}, "a key goes over https"),
        ({"key_env": "NO_SUCH_KEY"}, "the environment has no NO_SUCH_KEY"),
        ({"retires": 3}, r"judge\.server\.retires: unknown key of server; nearest: retries; takes key_env, .*url, model"),
        ({"timeout": 0}, r"judge\.server\.timeout: got 0"),
        ({"at_once": 1.5}, r"judge\.server\.at_once: got 1\.5, takes int"),
        ({"failures": 2}, r"judge\.server\.failures: got 2"),
    ],
)
def test_settings_are_refused_before_anything_is_sent(monkeypatch, change, says):
    monkeypatch.setenv("SOME_KEY", "very-secret")
    with pytest.raises(UserError, match=says):
        connect("judge", {"url": "http://127.0.0.1:9/v1", "model": "m", **change})
    with pytest.raises(UserError, match=r"judge\.server: got 'here', takes"):
        connect("judge", "here")
