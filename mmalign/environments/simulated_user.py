"""A model that plays the user."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mmalign.conversations import Turn, texts_of
from mmalign.environments._parts import Environment
from mmalign.serving.chat import ServerSettings, connect
from mmalign.types import UserError

OTHER = {"user": "assistant", "assistant": "user"}
SILENCE = {"assistant": "..."}  # what the user sees of an assistant that says nothing
MOST = 256  # tokens of what a server says, where the call does not say


@runtime_checkable
class Answering(Protocol):
    """What answers conversations: a policy of language."""

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[Any]:
        """An answer to each."""


def simulated_user(
    policy: Any = None, *, server: ServerSettings | None = None,
    words: str = "You are the user of an assistant. Say what you would say next.", over: str | None = "GOODBYE",
    call: dict[str, Any] | None = None,
) -> Environment:  # fmt: skip
    """What a language model says as the user: it sees the conversation with the roles turned round, and answers.

    Who plays: another model, ``policy: {use: transformers, model: ...}``; one on a server; or, where neither is named, the policy that is
    trained, as its reference ``ref`` is: what it was before training, unless ``references`` says otherwise. With LoRA that costs no memory.

    Tools' turns and system turns are left out of what it sees, and turns of one role behind each other are one. No gradient reaches it.
    Answers are drawn by each conversation's own number (``policy.turns``), so that a run can be made again; not those of a server, whose
    missing answers end their conversations, and stop the run where they are too many.

    Args:
        policy: the other model: anything with ``generate``.
        server: of OpenAI's chat completions, in place of it.
        words: its system turn, that says whom it plays.
        over: what it says when it has nothing more to say; the conversation ends there. None: it never ends one.
        call: keywords of its ``generate``: ``temperature``, ``max_completion``, ...; of a server these two.

    Errors: UserError for what is no policy, for a policy and a server, and other keywords for a server.
    """
    if policy is not None and not isinstance(policy, Answering):
        raise UserError(f"simulated_user.policy: got a {type(policy).__name__}, takes a policy of language")
    if policy is not None and server is not None:
        raise UserError("simulated_user.server: got a policy too, takes one of them")
    speaker = None if policy is None else policy.generate
    if server is not None:
        if odd := sorted((call or {}).keys() - {"temperature", "max_completion"}):
            raise UserError(f"simulated_user.call.{odd[0]}: takes temperature and max_completion, for a server")
        speaker = _served(server)
    return SimulatedUser(speaker, words, over, call or {})


class SimulatedUser:
    """See ``simulated_user``. speaker: ``(prompts, seeds, **call) -> answers``, None for one to come. awaits: whether none was named."""

    def __init__(self, speaker: Callable[..., list[Any]] | None, words: str, over: str | None, call: Mapping[str, Any]) -> None:
        self.speaker, self.words, self.over, self.call, self.awaits = speaker, words, over, call, speaker is None

    def join(self, speaker: Callable[..., list[Any]]) -> None:
        """Takes the answers of the reference of the policy whose environment this is."""
        self.speaker = speaker

    def __call__(self, conversations: Sequence[Sequence[Turn]], seeds: Sequence[int] | None = None) -> list[Any]:
        if self.speaker is None:
            raise UserError(
                "simulated_user: got no policy and no server, takes one of them (under policy.turns it may be the policy itself)"
            )
        asked = [[{"role": "system", "content": self.words}, *_turned(talk)] for talk in conversations]
        numbers = list(seeds) if seeds is not None else [random.Random(str(talk)).getrandbits(31) for talk in asked]
        said = [(reply or "").strip() for reply in self.speaker(asked, numbers, **self.call)]
        return [None if not reply or (self.over is not None and self.over in reply) else reply for reply in said]


def _served(settings: ServerSettings) -> Callable[..., list[Any]]:
    """Answers of a server; None for one that is missing."""
    server = connect("simulated_user", settings)

    def answers(prompts: list[Any], seeds: list[int], *, temperature: float = 1.0, max_completion: int = MOST) -> list[Any]:
        return server.ask(prompts, lambda answer: answer.text, max_tokens=max_completion, temperature=temperature)

    return answers


def _turned(talk: Sequence[Turn]) -> list[Turn]:
    """A conversation as the user sees it, turns of one role behind each other as one."""
    turned: list[dict[str, Any]] = []
    for turn in talk:
        text = "".join(texts_of(turn)).strip() or SILENCE.get(turn["role"], "")
        if turn["role"] not in OTHER or not text:
            continue
        if turned and turned[-1]["role"] == OTHER[turn["role"]]:
            turned[-1]["content"] += f"\n{text}"
        else:
            turned.append({"role": OTHER[turn["role"]], "content": text})
    return list(turned)
