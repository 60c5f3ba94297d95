"""One client for servers that speak OpenAI's chat completions: many questions at once, and for each an answer or a reason why not.

What may be a passing trouble (no connection, a timeout, 408, 425, 429, 5xx, an answer that is no chat completion) is asked again, after
waits that double. What is left without an answer is missing: counted by reason, written to the quarantine where one is named, and
``None`` for whoever asked, never a number. 401, 403 and 404 are the user's to mend, and stop the run.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from mmalign.arguments.ranges import Count, Natural, NotNegative, Positive, within
from mmalign.arguments.signatures import Record, record
from mmalign.types import UserError

PASSING = {408, 425, 429, 500, 502, 503, 504}
MENDABLE = {401: "takes another key", 403: "takes another key", 404: "takes another url or model"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
LEAST_ASKED = 20  # answers before the missing part of them stops a run

Reading = TypeVar("Reading")
Conversation = list[dict[str, Any]]


class Unreadable(Exception):
    """An answer of the right shape that does not say what was asked; the message is the reason it is missing."""


class _Passing(Exception):
    """A trouble that may pass. ``wait``: seconds the server asks for. ``down``: nothing that was an HTTP answer came back."""

    def __init__(self, reason: str, *, wait: float = 0.0, down: bool = False):
        super().__init__(reason)
        self.wait, self.down = wait, down


class Token(NamedTuple):
    """A token of an answer.

    text: as it was written. likely: token -> log-probability (nats) of the likeliest ones in its place, itself included.
    """

    text: str
    likely: Mapping[str, float]


class Answer(NamedTuple):
    """What the server said.

    text: in full. tokens: with log-probabilities, empty where none were asked for. cut: it ran into max_tokens.
    """

    text: str
    tokens: tuple[Token, ...]
    cut: bool


@dataclass(frozen=True)
class ServerSettings(Record):
    """How a server of OpenAI's chat completions is asked: the keys of ``server:`` of a judge.

    url: up to and with ``/v1``. model: its name there. key_env: the environment variable that holds the key; it is read when the run
    begins, sent to that server alone, and never written anywhere. timeout: seconds for one answer. retries: further tries. backoff:
    seconds before the first of them, doubled each time. longest_wait: seconds of one wait at most, a ``Retry-After`` included. at_once:
    questions on their way at a time. failures: the largest part of the last 200 answers that may be missing; above it the run stops (1:
    never). bytes: of the longest answer that is read. quarantine: a file that gets a JSON line for every missing answer. body: further
    fields of the request, such as ``{seed: 1}``.
    """

    url: str
    model: str
    key_env: str | None = None
    timeout: Positive = 60.0
    retries: Natural = 3
    backoff: NotNegative = 1.0
    longest_wait: NotNegative = 60.0
    at_once: Count = 8
    failures: Annotated[float, within(0, 1)] = 0.5
    bytes: Annotated[int, within(1)] = 4 * 2**20
    quarantine: str | None = None
    body: dict[str, Any] = field(default_factory=dict)


def connect(name: str, server: ServerSettings | Mapping[str, Any]) -> Server:
    """The client that ``server:`` of a reward describes; nothing is sent yet.

    name: of the reward, for messages. server: the settings, or a mapping of them.

    Errors: UserError by key.
    """
    server = cast(ServerSettings, record(ServerSettings, server, f"{name}.server"))
    key = None
    if server.key_env is not None and not (key := os.environ.get(server.key_env)):
        raise UserError(f"{name}.server.key_env: the environment has no {server.key_env}")
    return Server(name, server, key)


class Server:
    """Asks a server; see `ServerSettings`. ``counts``: asked, missing, and missing for each reason, since it was connected."""

    def __init__(self, name: str, settings: ServerSettings, key: str | None):
        import httpx2

        self.name, self.settings, self._key = name, settings, key
        self.counts: Counter[str] = Counter()
        self._last: deque[bool] = deque(maxlen=200)
        self._waits, self._lock, self._down = random.Random(0), threading.Lock(), False
        try:
            address = httpx2.URL(settings.url.rstrip("/") + "/chat/completions")
        except httpx2.InvalidURL as error:
            raise UserError(f"{name}.server.url: got {settings.url!r}, takes http(s)://HOST/v1: {error}") from error
        if address.scheme not in ("http", "https") or not address.host or address.userinfo:
            raise UserError(f"{name}.server.url: got {settings.url!r}, takes http(s)://HOST/v1")
        local = address.host in LOOPBACK
        if key and address.scheme == "http" and not local:
            raise UserError(f"{name}.server.url: got {settings.url!r}; a key goes over https, or to this machine, alone")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout,
            trust_env=not local,
            limits=httpx2.Limits(max_connections=settings.at_once),
        )
        self._address = address

    def ask(
        self, conversations: Sequence[Conversation | Unreadable], read: Callable[[Answer], Reading], *, max_tokens: int, likely: int = 0,
        temperature: float = 0.0, say: Callable[[int], Mapping[str, Any]] = lambda row: {},
    ) -> list[Reading | None]:  # fmt: skip
        """What ``read`` makes of each conversation's answer, in their order; None for a missing one.

        conversations: Unreadable in place of one that could not be made: it is missing, for that reason. read: may raise Unreadable.
        max_tokens, temperature: of an answer. likely: how many alternatives of each token to ask log-probabilities of; 0: none. say: row
        -> what the quarantine shall hold of it.

        Errors: UserError where too much is missing, or the server refuses the key or the model.
        """
        reasons: list[str | None] = [None] * len(conversations)
        readings: list[Reading | None] = [None] * len(conversations)
        silent = 0
        give_up = 2 * self.settings.at_once

        def one(row: int) -> None:
            nonlocal silent
            if isinstance(conversation := conversations[row], Unreadable):
                reasons[row] = str(conversation)
                return
            if silent >= give_up:
                reasons[row] = "not asked, as the server does not answer"
                return
            body = {**self.settings.body, "model": self.settings.model, "messages": conversation}
            body |= {"max_tokens": max_tokens, "temperature": temperature, **({"logprobs": True, "top_logprobs": likely} if likely else {})}
            try:
                answer = self._answer(body)
                silent = 0
                readings[row] = read(answer)
            except Unreadable as error:
                reasons[row] = str(error)
            except _Passing as error:
                reasons[row] = str(error)
                silent = silent + 1 if error.down else 0
            except UserError:
                silent = give_up  # the others need not ask
                raise

        rows = list(range(len(conversations)))
        if self._down and rows:  # a server that was silent is asked one thing first
            one(rows.pop(0))
            silent = give_up if silent else 0
        with ThreadPoolExecutor(self.settings.at_once) as pool:
            list(pool.map(one, rows))
        self._down = silent > 0
        self._count(reasons, say)
        return readings

    def _answer(self, body: Mapping[str, Any]) -> Answer:
        """The answer to one request, asked again where a trouble may pass. Errors: _Passing or Unreadable where there is none."""
        for attempt in range(self.settings.retries + 1):
            try:
                return completion(self._post(body), with_tokens=bool(body.get("logprobs")))
            except _Passing as error:
                if attempt == self.settings.retries:
                    raise
                with self._lock:
                    wait = self.settings.backoff * 2**attempt * (0.5 + self._waits.random())
                time.sleep(min(self.settings.longest_wait, max(wait, error.wait)))
        raise AssertionError("the loop returns or raises")

    def _post(self, body: Mapping[str, Any]) -> bytes:
        """The body of the response. One deadline holds for it, however slowly it drips; waits for headers have the timeout each."""
        import httpx2

        ends = time.monotonic() + self.settings.timeout
        try:
            with self._client.stream("POST", self._address, json=body) as response:
                data = b""
                for block in response.iter_bytes():
                    data += block
                    if len(data) > self.settings.bytes:
                        raise Unreadable("longer than server.bytes")
                    if time.monotonic() > ends:
                        raise _Passing("timeout", down=True)
        except httpx2.TimeoutException as error:
            raise _Passing("timeout", down=True) from error
        except httpx2.TransportError as error:
            raise _Passing(f"no connection ({type(error).__name__})", down=True) from error
        except (httpx2.DecodingError, httpx2.StreamError) as error:
            raise _Passing(f"no readable response ({type(error).__name__})") from error
        status = response.status_code
        if status in MENDABLE:
            raise UserError(f"{self.name}.server: HTTP {status} from {self._address.host}: {self._excerpt(data)}; {MENDABLE[status]}")
        if status in PASSING:
            after = response.headers.get("retry-after", "")
            raise _Passing(f"HTTP {status}", wait=float(after) if after.isdecimal() and len(after) < 6 else 0.0, down=status != 429)
        if status != 200:
            raise Unreadable(f"HTTP {status}")
        return data

    def _excerpt(self, data: bytes) -> str:
        text = " ".join(data[:2000].decode("utf-8", "replace").split())
        return (text.replace(self._key, "***") if self._key else text)[:200]

    def _count(self, reasons: Sequence[str | None], say: Callable[[int], Mapping[str, Any]]) -> None:
        """Counts, quarantines and says what is missing; stops the run where that is too much."""
        missing = Counter(reason for reason in reasons if reason is not None)
        new = [reason for reason in missing if not self.counts[reason]]
        self.counts.update({"asked": len(reasons), "missing": missing.total(), **missing})
        self._last.extend(reason is not None for reason in reasons)
        if missing and self.settings.quarantine:
            path = Path(self.settings.quarantine)
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [{"reward": self.name, "reason": reason, **say(row)} for row, reason in enumerate(reasons) if reason is not None]
            with open(path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        causes = ", ".join(f"{count} x {reason}" for reason, count in missing.most_common(5))
        if new:
            warnings.warn(f"{self.name}: {missing.total()} of {len(reasons)} answers are missing: {causes}", stacklevel=4)
        part = sum(self._last) / max(1, len(self._last))
        if missing and len(self._last) >= LEAST_ASKED and part > self.settings.failures:
            most = f"takes at most {self.settings.failures:.0%} (server.failures)"
            raise UserError(f"{self.name}: {sum(self._last)} of the last {len(self._last)} answers are missing ({causes}); {most}")


def completion(data: bytes, *, with_tokens: bool) -> Answer:
    """A response's body as an answer. with_tokens: it has to hold log-probabilities. Errors: _Passing where its shape is another."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        body = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _Passing("no JSON") from error
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise _Passing("no chat completion: takes one choice")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise _Passing("no chat completion: takes a message with content")
    tokens = _tokens(choices[0].get("logprobs")) if with_tokens else ()
    if with_tokens and not tokens:
        raise _Passing("no log-probabilities")
    return Answer(text, tokens, choices[0].get("finish_reason") == "length")


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        return ()
    tokens = []
    for item in content:
        if not isinstance(item, Mapping) or not isinstance(item.get("top_logprobs", []), list):
            raise _Passing("no log-probabilities of tokens")
        likely: dict[str, float] = {}
        for choice in (item, *item.get("top_logprobs", [])):
            token, value = (choice.get("token"), choice.get("logprob")) if isinstance(choice, Mapping) else (None, None)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value <= 1e-3
            if not isinstance(token, str) or not number:
                raise _Passing("no log-probabilities of tokens")
            likely[token] = float(value)  # type: ignore[arg-type]
        if sum(math.exp(value) for value in likely.values()) > 1.01:
            raise _Passing("probabilities of more than 1")
        tokens.append(Token(str(item["token"]), likely))
    return tuple(tokens)
