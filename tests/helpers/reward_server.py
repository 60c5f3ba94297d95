"""A server of rewards on loopback, in a thread: ours, behind something that may misbehave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mmalign.serving.app import Serve, application


class RewardServer:
    """``change``: (number of the question, body of the answer) -> what is sent instead: bytes, ``(status, bytes)``, a number (seconds to
    wait first), or ``"cut"``, half of it and then nothing."""

    def __init__(self, rewards: Mapping[str, Callable[..., Any]], *, token: str | None = None, **serve: Any):
        import uvicorn

        self.app = application(rewards, Serve(patience=serve.pop("patience", 0.0), **serve), token=token)
        self.change: Callable[[int, bytes], Any] = lambda number, answer: answer
        self.questions = 0
        self.server = uvicorn.Server(
            uvicorn.Config(self._asked, port=0, log_level="critical", interface="asgi3", lifespan="on", timeout_graceful_shutdown=300)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started and self.thread.is_alive():
            self.thread.join(0.005)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    async def _asked(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/score":
            await self.app(scope, receive, send)
            return
        self.questions += 1
        number, start, body = self.questions, dict[str, Any](), bytearray()

        async def held(message: dict[str, Any]) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            body.extend(message.get("body", b""))

        await self.app(scope, receive, held)
        does = self.change(number, bytes(body))
        if isinstance(does, float):
            await asyncio.sleep(does)
            does = bytes(body)
        status, sent = does if isinstance(does, tuple) else (start["status"], bytes(body) if does == "cut" else does)
        headers = [(b"content-length", str(len(sent)).encode()), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": sent[: len(sent) // 2] if does == "cut" else sent, "more_body": False})

    def kill(self) -> None:
        """Stops listening; what is on its way gets no answer."""
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(300)
