"""The server of rewards: an application of FastAPI's with four addresses, and what holds of every request.

``POST /score`` (see `wire`), ``GET /info`` (rewards with the hashes of their weights and of their config, versions, limits), ``GET
/health`` and ``GET /metrics`` (Prometheus' text). A mistake is one line, ``{"error": ...}``: 400 for what is no question, 401 without the
token, 404 for a reward that is not there, 413 for too much, 422 for what the reward does not take, 503 where too many wait or the time is
over.
"""

from __future__ import annotations

import asyncio
import hmac
import platform
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from mmalign import __version__
from mmalign.arguments.facts import Stepped, of_latents
from mmalign.arguments.parameters import parameters
from mmalign.arguments.ranges import Count, NotNegative, Positive, within
from mmalign.arguments.reads import columns_read
from mmalign.arguments.signatures import Record, nearest
from mmalign.serving.scoring import Asked, Full, Late, Scored, Scoring
from mmalign.serving.wire import PROTOCOL, content_hash, unpacked
from mmalign.types import UserError

PACKAGES = ("torch", "transformers", "diffusers", "numpy")


@dataclass(frozen=True, kw_only=True)
class Serve(Record):
    """Where rewards are served, and how much one may ask of them.

    host, port: where it listens; port 0 takes a free one, which is printed. token_env: the environment variable that holds the token that
    every question has to come with; needed where others than this machine can ask. certificate_file, certificate_key_file: for https.
    bytes: of one question. rows: of one question. pixels: of one picture. waiting: questions that wait at most. together: rows of one
    call that is made of questions whose clients say that rows do not depend on each other (``rows`` of ``served``). patience: seconds that
    such a question waits for others. stop: seconds that questions have to end once the server is told to.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, within(0, 65535)] = 8100
    token_env: str | None = None
    certificate_file: str | None = None
    certificate_key_file: str | None = None
    bytes: Annotated[int, within(1)] = 256 * 2**20
    rows: Count = 4096
    pixels: Annotated[int, within(1)] = 64 * 10**6
    waiting: Count = 256
    together: Count = 64
    patience: NotNegative = 0.005
    stop: Positive = 10.0


class Refused(Exception):
    """A request that is not answered: the status, and the line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class Addresses:
    """What a server answers at its four addresses; see the top of this file.

    token: that every request but for ``/health`` has to come with. config: what it was made by, whose hash is told.
    """

    def __init__(self, rewards: Mapping[str, Callable[..., Any]], serve: Serve, token: str | None, config: Any):
        self.rewards, self.serve, self.token, self.heard = dict(rewards), serve, token, Heard()
        more: dict[str, Any] = {"together": serve.together, "patience": serve.patience, "waiting": serve.waiting}
        self.scoring = Scoring(rewards, heard=self.heard.called, **more)
        limits = {key: value for key, value in asdict(serve).items() if key in ("bytes", "rows", "pixels", "waiting")}
        self.facts = {"protocol": PROTOCOL, "config": content_hash(config)[:16], "versions": versions(), "limits": limits}

    def refuse_strangers(self, request: Any) -> None:
        """Errors: Refused without the token."""
        given = request.headers.get("authorization", "")
        if self.token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise Refused(401, "takes the server's token: Authorization: Bearer TOKEN")

    async def score(self, request: Any) -> Any:
        """``POST /score``."""
        from fastapi.responses import JSONResponse

        self.refuse_strangers(request)
        asked = await asyncio.to_thread(question, await body(request, self.serve.bytes), self.serve, self.rewards)
        scored = await answer(self.scoring, asked)
        self.heard.answered(asked.reward, scored)
        return JSONResponse({"reward": asked.reward, **scored._asdict()})

    async def info(self, request: Any) -> Any:
        """``GET /info``."""
        from fastapi.responses import JSONResponse

        self.refuse_strangers(request)
        described = {name: {**described_reward(one), "weights": self.scoring.weights[name]} for name, one in self.rewards.items()}
        return JSONResponse({**self.facts, "rewards": described})

    async def health(self, request: Any) -> Any:
        """``GET /health``."""
        from fastapi.responses import JSONResponse

        return JSONResponse({"status": "ok", "waiting": self.scoring.waiting})

    async def metrics(self, request: Any) -> Any:
        """``GET /metrics``."""
        from fastapi.responses import PlainTextResponse

        self.refuse_strangers(request)
        return PlainTextResponse(self.heard.text(self.scoring.waiting), media_type="text/plain; version=0.0.4")

    async def refused(self, request: Any, error: Any) -> Any:
        """A request that is not answered."""
        from fastapi.responses import JSONResponse

        self.heard.refused(error.status)
        later = {"Retry-After": "1"} if error.status == 503 else {}
        return JSONResponse({"error": str(error)}, status_code=error.status, headers=later)

    async def unknown(self, request: Any, error: Any) -> Any:
        """An address that there is not."""
        return await self.refused(
            request, Refused(404, f"{request.method} {request.url.path}: takes POST /score, GET /info, /health, /metrics")
        )


def application(rewards: Mapping[str, Callable[..., Any]], serve: Serve, *, token: str | None = None, config: Any = None) -> Any:
    """The application for rewards that are there, see `Addresses`. Its ``state.scoring`` is where rewards are asked."""
    from fastapi import FastAPI

    at = Addresses(rewards, serve, token, config)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(at.scoring.close, serve.stop)

    app = FastAPI(title="mmalign serve-reward", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.scoring = at.scoring
    app.add_route("/score", at.score, methods=["POST"])  # which reads bodies itself, within their limit
    for path, read in (("/info", at.info), ("/health", at.health), ("/metrics", at.metrics)):
        app.add_route(path, read, methods=["GET"])
    app.add_exception_handler(Refused, at.refused)
    for status in (404, 405):
        app.add_exception_handler(status, at.unknown)
    return app


async def body(request: Any, most: int) -> bytes:
    """The bytes of a request. Errors: Refused for more than ``most``, as soon as that is known."""
    length = request.headers.get("content-length", "")
    data = bytearray()
    if not (length.isdigit() and int(length) > most):
        async for block in request.stream():
            data += block
            if len(data) > most:
                break
        else:
            return bytes(data)
    raise Refused(413, f"got {length or 'more'} bytes, takes at most {most} (serve.bytes)")


def question(data: bytes, serve: Serve, rewards: Mapping[str, Any]) -> Asked:
    """A question as it came, read and checked. Errors: Refused."""
    from pydantic import ValidationError

    try:
        asked = _question_type().model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(400, f"{place + ': ' if place else ''}{first['msg']}"[:300]) from error
    name = asked.reward if asked.reward is not None or len(rewards) != 1 else next(iter(rewards))
    if name not in rewards:
        raise Refused(404, f"reward: got {name!r}{nearest(str(name), rewards)}; there are {', '.join(rewards)}")
    rows = len(asked.prompts)
    if rows > serve.rows:
        raise Refused(413, f"got {rows} rows, takes at most {serve.rows} (serve.rows)")
    try:
        prompts, outputs, columns = (unpacked(value, pixels=serve.pixels) for value in (asked.prompts, asked.outputs, asked.columns))
    except UserError as error:
        raise Refused(413 if "takes at most" in str(error) else 400, str(error)) from error
    counts = {"outputs": outputs, **columns}
    for key, values in counts.items():
        if not isinstance(values, list) and not (key == "outputs" and getattr(values, "ndim", 0)):
            raise Refused(400, f"{key}: got {type(values).__name__}, takes a list or a tensor with an entry for each prompt")
        if len(values) != rows:
            raise Refused(400, f"{key}: got {len(values)} for {rows} prompts, takes one for each")
    if not rows:
        raise Refused(400, "prompts: got none, takes at least one")
    return Asked(name, prompts, outputs, columns, asked.step, asked.alone, time.monotonic() + asked.seconds)


def _question_type() -> Any:
    """The model of a question; pydantic is asked for it when there is one to read."""
    from pydantic import BaseModel, ConfigDict, Field

    class Question(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        reward: str | None = None
        prompts: list[Any]
        outputs: Any
        columns: dict[str, Any] = Field(default_factory=dict)
        step: int | None = None
        alone: bool = False
        seconds: float = Field(default=3600.0, gt=0)

    return Question


async def answer(scoring: Scoring, asked: Asked) -> Scored:
    """The answer of a reward. Errors: Refused."""
    try:
        return await asyncio.wrap_future(scoring.ask(asked))
    except Full:
        raise Refused(503, "too many questions wait already (serve.waiting), or the server is about to stop") from None
    except Late:
        raise Refused(503, "the time that its client has is over") from None
    except UserError as error:
        raise Refused(422, " ".join(str(error).split())) from error


def described_reward(reward: Callable[..., Any]) -> dict[str, Any]:
    """What a client has to know of a reward: the columns that it needs, those that it takes (null: any), whether it scores latents, and
    whether it changes as training goes."""
    keywords, any_key = parameters(reward)
    changes = isinstance(reward, Stepped) and callable(reward.at)
    takes = None if any_key else sorted(keywords)
    return {"reads": sorted(columns_read(reward)), "takes": takes, "of_latents": of_latents(reward), "changes": changes}


def versions() -> dict[str, str]:
    """Of Python and of the packages that scores may depend on, those that are there."""
    found = {"python": platform.python_version(), "mmalign": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Heard:
    """What is counted of a server, as Prometheus reads it."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self.registry, "namespace": "mmalign"}
        rows = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
        self._calls = Histogram("reward_seconds", "of a call of a reward", ["reward"], **of)
        self._rows = Histogram("reward_rows", "of a call of a reward", ["reward"], buckets=rows, **of)
        self._scored = Counter("scored_rows", "that were answered for", ["reward"], **of)
        self._missing = Counter("missing_rows", "that have no score", ["reward"], **of)
        self._refused = Counter("refused", "requests by status", ["status"], **of)
        self._waiting = Gauge("waiting", "questions that have not been begun", **of)

    def called(self, reward: str, rows: int, seconds: float) -> None:
        """A call of a reward."""
        self._calls.labels(reward).observe(seconds)
        self._rows.labels(reward).observe(rows)

    def answered(self, reward: str, scored: Scored) -> None:
        """A question that has its answer."""
        self._scored.labels(reward).inc(max(map(len, scored.scores.values())))
        self._missing.labels(reward).inc(len(scored.reasons))

    def refused(self, status: int) -> None:
        """A request that was not answered."""
        self._refused.labels(str(status)).inc()

    def text(self, waiting: int) -> str:
        """All of it."""
        from prometheus_client import generate_latest

        self._waiting.set(waiting)
        return generate_latest(self.registry).decode()
