"""A server of chat completions on loopback that answers well until it is told to misbehave."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


def likely(**probabilities: float) -> dict[str, Any]:
    """A choice of one token with these probabilities; the likeliest is what it says."""
    likeliest = max(probabilities, key=probabilities.get)
    top = [{"token": token, "logprob": math.log(value)} for token, value in probabilities.items()]
    content = [{"token": likeliest, "logprob": math.log(probabilities[likeliest]), "top_logprobs": top}]
    return {"message": {"content": likeliest}, "finish_reason": "length", "logprobs": {"content": content}}


def written(text: str, finish: str = "stop") -> dict[str, Any]:
    """A choice of a whole text, every character a token that is certain."""
    content = [{"token": letter, "logprob": 0.0, "top_logprobs": []} for letter in text]
    return {"message": {"content": text}, "finish_reason": finish, "logprobs": {"content": content}}


@contextmanager
def hurried(seconds: Callable[[], float | None]) -> Iterator[None]:
    """Requests wait for as long as this says when they begin; None: as long as their client says."""
    import httpx2

    stream = httpx2.Client.stream

    def sooner(client: Any, *given: Any, **more: Any) -> Any:
        return stream(client, *given, **more, **({} if (limit := seconds()) is None else {"timeout": limit}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpx2.Client, "stream", sooner)
        yield


class FakeServer:
    """``answer``: the request's body -> a choice. ``misbehave``: number of the request -> what it does instead of answering, or None.

    Of those: bytes are sent as they are with status 200; ``(status, bytes)``; ``"close"``, hang up; a number, wait so many seconds first.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]]):
        self.answer = answer
        self.misbehave: Callable[[int], Any] = lambda number: None
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None: ...

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    owner.requests.append({**body, "path": self.path})
                    owner.keys.append(self.headers.get("authorization"))
                    number = len(owner.requests)
                does = owner.misbehave(number)
                status, sent = 200, json.dumps({"choices": [owner.answer(body)]}).encode()
                if does == "close":
                    self.close_connection = True
                    return
                if isinstance(does, float):
                    time.sleep(does)
                elif isinstance(does, bytes):
                    sent = does
                elif does is not None:
                    status, sent = does
                self.send_response(status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """Stops listening; what is on its way gets no answer."""
        self.misbehave = lambda number: "close"
        self.server.shutdown()
        self.server.server_close()
