"""One client for servers that speak OpenAI's chat completions (`asking` has the rules of asking again and of stopping)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from mmalign.arguments.signatures import record
from mmalign.serving.asking import Asking, Client, Passing, Unreadable, key_of, strict_json

__all__ = ["Answer", "Conversation", "Server", "ServerSettings", "Token", "Unreadable", "connect"]

Reading = TypeVar("Reading")
Conversation = list[dict[str, Any]]


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


@dataclass(frozen=True, kw_only=True)
class ServerSettings(Asking):
    """How a server of OpenAI's chat completions is asked: the keys of ``server:`` of a judge.

    url: up to and with ``/v1``. model: its name there. key_env: the environment variable that holds the key; it is read when the run
    begins, sent to that server alone, and never written anywhere. timeout: seconds for one answer. retries: further tries. backoff:
    seconds before the first of them, doubled each time. longest_wait: seconds of one wait at most, a ``Retry-After`` included. at_once:
    questions on their way at a time. failures: the largest part of the last 200 answers that may be missing; above it the run stops (1:
    never). bytes: of the longest answer that is read. quarantine: a file that gets a JSON line for every missing answer.
    certificates_file: of those who vouch for the server (PEM), over https, in place of the usual ones. body: further fields of the
    request, such as ``{seed: 1}``.
    """

    url: str
    model: str
    body: dict[str, Any] = field(default_factory=dict)


def connect(name: str, server: ServerSettings | Mapping[str, Any]) -> Server:
    """The client that ``server:`` of a reward describes; nothing is sent yet.

    name: of the reward, for messages. server: the settings, or a mapping of them.

    Errors: UserError by key.
    """
    server = cast(ServerSettings, record(ServerSettings, server, f"{name}.server"))
    return Server(name, server, key_of(f"{name}.server", server))


class Server(Client):
    """Asks a server; see `ServerSettings`. ``counts``: asked, missing, and missing for each reason, since it was connected."""

    settings: ServerSettings

    def __init__(self, name: str, settings: ServerSettings, key: str | None):
        place = f"{name}.server"
        super().__init__(name, place, settings, settings.url, key=key, url_place=f"{place}.url", form="http(s)://HOST/v1")

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

        def one(conversation: Conversation) -> Reading:
            body = {**self.settings.body, "model": self.settings.model, "messages": conversation}
            body |= {"max_tokens": max_tokens, "temperature": temperature, **({"logprobs": True, "top_logprobs": likely} if likely else {})}
            return read(completion(self.send("/chat/completions", body), with_tokens=bool(body.get("logprobs"))))

        answers = self.each(conversations, one)
        self.count([str(answer) if isinstance(answer, Unreadable) else None for answer in answers], say)
        return [None if isinstance(answer, Unreadable) else answer for answer in answers]


def completion(data: bytes, *, with_tokens: bool) -> Answer:
    """A response's body as an answer. with_tokens: it has to hold log-probabilities. Errors: Passing where its shape is another."""
    body = strict_json(data)
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise Passing("no chat completion: takes one choice")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise Passing("no chat completion: takes a message with content")
    tokens = _tokens(choices[0].get("logprobs")) if with_tokens else ()
    if with_tokens and not tokens:
        raise Passing("no log-probabilities")
    return Answer(text, tokens, choices[0].get("finish_reason") == "length")


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list):
        return ()
    tokens = []
    for item in content:
        if not isinstance(item, Mapping) or not isinstance(item.get("top_logprobs", []), list):
            raise Passing("no log-probabilities of tokens")
        likely: dict[str, float] = {}
        for choice in (item, *item.get("top_logprobs", [])):
            token, value = (choice.get("token"), choice.get("logprob")) if isinstance(choice, Mapping) else (None, None)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value <= 1e-3
            if not isinstance(token, str) or not number:
                raise Passing("no log-probabilities of tokens")
            likely[token] = float(value)  # type: ignore[arg-type]
        if sum(math.exp(value) for value in likely.values()) > 1.01:
            raise Passing("probabilities of more than 1")
        tokens.append(Token(str(item["token"]), likely))
    return tuple(tokens)
