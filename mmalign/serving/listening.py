"""A server of rewards from the moment it listens to the moment it has answered the last question."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from mmalign.serving.app import Serve, application
from mmalign.serving.asking import LOOPBACK
from mmalign.types import UserError

READY = "serving "
"""How the line begins that says where a server listens; the address follows, and what it serves."""


def listen(
    rewards: Mapping[str, Callable[..., Any]], serve: Serve, *, config: Any, say: Callable[[str], None], with_stdin: bool = False
) -> None:
    """Serves until SIGTERM, Ctrl-C, or, ``with_stdin``, the end of what comes in: what has been asked is answered, within ``serve.stop``.

    Errors: UserError for an address that cannot be had, a token that is not there, and one that is needed.
    """
    if absent := [package for package in ("uvicorn", "fastapi", "prometheus_client") if find_spec(package) is None]:
        raise UserError(f"serve-reward: needs the package {absent[0]}, which is not installed: pip install 'mmalign[serve]'")
    token = token_of(serve)
    with contextlib.closing(bound(serve.host, serve.port, "serve.port")) as socket_:
        app = application(rewards, serve, token=token, config=config)
        where = f"{'https' if serve.certificate_file else 'http'}://{serve.host}:{socket_.getsockname()[1]}"
        weights = ", ".join(f"{name} (weights {digest})" for name, digest in app.state.scoring.weights.items())
        say(f"{READY}{where} {weights}")
        if with_stdin:
            os.dup2(2, 1)  # whoever started this reads no further: what a reward prints would fill the pipe
        certificate = {"ssl_certfile": serve.certificate_file, "ssl_keyfile": serve.certificate_key_file}
        answer(app, socket_, stop=serve.stop, with_stdin=with_stdin, **certificate)
    say("stopped")


def answer(app: Any, bound: socket.socket, *, stop: float, with_stdin: bool = False, **settings: Any) -> None:
    """Answers at a socket until SIGTERM or Ctrl-C, and what has been asked then within ``stop`` seconds.

    settings: further ones of uvicorn's.
    """
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=max(1, round(stop)), **settings))
    if with_stdin:
        threading.Thread(target=_until_closed, args=(server,), name="mmalign-stdin", daemon=True).start()
    with _told_twice_is_once():
        server.run(sockets=[bound])


def token_of(serve: Serve) -> str | None:
    """The token that questions have to come with. Errors: UserError where the environment has none, or strangers could ask without."""
    token = os.environ.get(serve.token_env) if serve.token_env is not None else None
    if serve.token_env is not None and not token:
        raise UserError(f"serve.token_env: the environment has no {serve.token_env}")
    if token is None and serve.host not in LOOPBACK:
        raise UserError(f"serve.token_env: missing; others than this machine can ask at {serve.host}; takes an environment variable's name")
    return token


def bound(host: str, port: int, key: str) -> socket.socket:
    """A socket that listens there already: who asks before the server is up waits, and is not refused.

    key: the setting of the port, for messages. Errors: UserError for an address that cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen()
    except OSError as error:
        found.close()
        raise UserError(f"{key}: cannot listen at {host}:{port}: {error.strerror or error}; port 0 takes a free one") from error
    return found


def _until_closed(server: Any) -> None:
    sys.stdin.buffer.read()  # whoever started this holds the other end, and an end by SIGKILL closes it too
    server.should_exit = True


@contextlib.contextmanager
def _told_twice_is_once() -> Iterator[None]:
    """uvicorn raises the signals that ended it again when it is done: here they have been heard. Threads other than the first have none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
