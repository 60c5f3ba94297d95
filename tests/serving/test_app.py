"""What a server of rewards answers over HTTP, and what it refuses, in one line each."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time

import httpx2
import pytest
import torch

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from mmalign.serving.app import Serve
from mmalign.serving.listening import bound, listen, token_of
from mmalign.serving.wire import packed
from mmalign.types import UserError
from tests.helpers.reward_server import RewardServer

SECRET = "very-secret"
LONG = 300.0  # seconds, of what comes at once where nothing is wrong
KEYED = {"Authorization": f"Bearer {SECRET}"}


def letters(outputs, prompts):
    return [float(len(output)) if output else None for output in outputs]


def mean(outputs, prompts):
    return outputs.flatten(1).mean(1)


@pytest.fixture(scope="module")
def server():
    serving = RewardServer({"letters": letters, "mean": mean}, token=SECRET, rows=4, bytes=20_000, pixels=100)
    yield serving
    serving.kill()


def asked(**change):
    question = {"reward": "letters", "prompts": ["p", "q"], "outputs": ["one", ""], **change}
    return {key: value for key, value in question.items() if value != "left out"}


def post(server, content, headers=KEYED):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = httpx2.post(f"{server.url}/score", content=data, headers=headers, trust_env=False, timeout=LONG)
    return response.status_code, response.json()


def png(width, height):
    from PIL import Image

    written = io.BytesIO()
    Image.new("RGB", (width, height), (255, 255, 255)).save(written, format="PNG")
    return base64.b64encode(written.getvalue()).decode()


def test_scores_and_reasons(server):
    status, answer = post(server, asked())
    assert status == 200 and answer == {
        "reward": "letters", "weights": "none", "scores": {"": [3.0, None]}, "reasons": {"1": "the reward has no score of it"},
    }  # fmt: skip
    for outputs in ({"$images": [png(2, 3), png(2, 3)]}, packed(torch.ones(2, 3, 3, 2)), {"$videos": [[png(2, 2)], [png(2, 2)]]}):
        assert post(server, asked(reward="mean", outputs=outputs))[1]["scores"] == {"": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "Invalid JSON"),
        (b"[" * 5000, 400, "Invalid JSON"),
        (b"\x80\x04pickle", 400, "Invalid JSON"),
        (asked(prompts="left out"), 400, "prompts: Field required"),
        (asked(colums={}), 400, "colums: Extra inputs are not permitted"),
        (asked(prompts="pq"), 400, "prompts: Input should be a valid array"),
        (asked(step="3"), 400, "step: Input should be a valid integer"),
        (asked(prompts=[], outputs=[]), 400, "prompts: got none"),
        (asked(outputs=["one"]), 400, "outputs: got 1 for 2 prompts, takes one for each"),
        (asked(outputs="xy"), 400, "outputs: got str, takes a list or a tensor"),
        (asked(columns={"answer": ["a"]}), 400, "answer: got 1 for 2 prompts"),
        (asked(outputs={"$tensor": "AAAA"}), 400, "got what is no safetensors"),
        (asked(outputs={"$tensor": "*"}), 400, "got what is no base64"),
        (asked(outputs={"$images": ["AAAA", "AAAA"]}), 400, "a picture: not decodable"),
        (asked(outputs={"$images": [png(2, 2), png(3, 2)]}), 400, "got images of 2 sizes"),
        (asked(outputs={"$path": "/etc/passwd"}), 400, "got a mapping with $path, takes one of $tensor"),
        (asked(outputs={"$images": [png(101, 1), png(101, 1)]}), 413, "101 x 1 pixels, takes at most 100"),
        (asked(prompts=["p"] * 5, outputs=["o"] * 5), 413, "got 5 rows, takes at most 4"),
        (asked(outputs=["x" * 20_000, ""]), 413, "bytes, takes at most 20000"),
        (asked(reward="letter"), 404, "reward: got 'letter'; nearest: letters; there are letters, mean"),
        (asked(reward="left out"), 404, "reward: got None"),
        (asked(reward="mean"), 200, "raised AttributeError"),
    ],
)
def test_mistakes_are_one_line(server, content, status, says):
    got, answer = post(server, content)
    assert got == status and says in json.dumps(answer) and "\n" not in json.dumps(answer)


def test_a_body_without_a_length_is_cut_off_too(server):
    blocks = (b"x" * 5000 for _ in range(1000))
    response = httpx2.post(f"{server.url}/score", content=blocks, headers=KEYED, trust_env=False, timeout=LONG)
    assert response.status_code == 413


def test_strangers_learn_that_it_lives_and_nothing_else(server):
    get = lambda path, headers: httpx2.get(server.url + path, headers=headers, trust_env=False, timeout=LONG)  # noqa: E731
    for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": SECRET}):
        assert post(server, asked(), headers) == (401, {"error": "takes the server's token: Authorization: Bearer TOKEN"})
        assert [get(path, headers).status_code for path in ("/info", "/metrics", "/health", "/docs", "/")] == [401, 401, 200, 404, 404]
    info = get("/info", KEYED).json()
    facts = {"reads": [], "takes": ["outputs", "prompts"], "of_latents": False, "changes": False, "weights": "none"}
    assert info["rewards"]["mean"] == facts
    assert info["limits"] == {"bytes": 20_000, "rows": 4, "pixels": 100, "waiting": 256} and info["versions"]["torch"] == torch.__version__
    assert SECRET not in json.dumps(info)


def test_metrics_count_rows():
    serving = RewardServer({"letters": letters})
    post(serving, asked())
    post(serving, asked(outputs=["x"]))
    lines = httpx2.get(f"{serving.url}/metrics", trust_env=False, timeout=LONG).text.splitlines()
    serving.kill()
    for line in (
        'mmalign_scored_rows_total{reward="letters"} 2.0', 'mmalign_missing_rows_total{reward="letters"} 1.0',
        'mmalign_refused_total{status="400"} 1.0', 'mmalign_reward_rows_sum{reward="letters"} 2.0', "mmalign_waiting 0.0",
    ):  # fmt: skip
        assert line in lines


def test_a_question_on_its_way_is_answered_before_the_server_stops():
    begun, go = threading.Event(), threading.Event()

    def slow(outputs, prompts):
        begun.set()
        assert go.wait(LONG)
        return [1.0] * len(outputs)

    serving, answers = RewardServer({"slow": slow}), []
    asking = threading.Thread(target=lambda: answers.append(post(serving, asked(reward="slow"))))
    asking.start()
    assert begun.wait(LONG)
    serving.server.should_exit = True
    time.sleep(0.05)
    go.set()
    asking.join(LONG)
    serving.thread.join(LONG)
    assert answers[0][1]["scores"] == {"": [1.0, 1.0]} and not serving.thread.is_alive()
    assert not serving.app.state.scoring._thread.is_alive()  # which nothing is asked of any more
    with pytest.raises(httpx2.TransportError):
        post(serving, asked())


def test_where_it_listens(server, monkeypatch):
    taken = int(server.url.rpartition(":")[2])
    with pytest.raises(UserError, match=rf"serve\.port: cannot listen at 127\.0\.0\.1:{taken}: Address already in use; port 0 takes"):
        listen({"letters": letters}, Serve(port=taken), config=None, say=print)
    with bound("127.0.0.1", 0, "port") as early, socket.create_connection(early.getsockname()[:2]):
        pass  # asked before anything answers: it waits, and is not refused
    with pytest.raises(UserError, match=r"serve\.token_env: missing; others than this machine can ask at 0\.0\.0\.0"):
        token_of(Serve(host="0.0.0.0"))
    with pytest.raises(UserError, match=r"serve\.token_env: the environment has no SOME_TOKEN"):
        token_of(Serve(token_env="SOME_TOKEN"))
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    assert token_of(Serve(host="0.0.0.0", token_env="SOME_TOKEN")) == SECRET


def test_whoever_reads_that_it_serves_is_not_turned_away():
    class Connected(Exception): ...

    def say(line):
        with socket.create_connection(("127.0.0.1", int(line.split()[1].rpartition(":")[2])), timeout=LONG):
            raise Connected

    with pytest.raises(Connected):
        listen({"letters": letters}, Serve(port=0), config=None, say=say)
