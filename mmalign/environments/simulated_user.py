"""A model that plays the user."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from mmalign.conversations import Turn, texts_of
from mmalign.environments._parts import Environment
from mmalign.types import UserError

OTHER = {"user": "assistant", "assistant": "user"}


@runtime_checkable
class Answering(Protocol):
    """What answers conversations: a policy of language."""

    def generate(self, prompts: list[Any], seeds: list[int], **call: Any) -> list[Any]:
        """An answer to each."""


def simulated_user(
    policy: Any, *, words: str = "You are the user of an assistant. Say what you would say next.", over: str | None = "GOODBYE",
    call: dict[str, Any] | None = None,
) -> Environment:  # fmt: skip
    """What a language model says as the user: it sees the conversation with the roles turned round, and answers.

    Tools' turns and system turns are left out of what it sees, and turns of one role behind each other are one. What it plays is frozen: it
    is another model than the policy that is trained, or a copy of it. Its answers are drawn by each conversation's own number
    (``policy.turns``).

    Args:
        policy: the other model: anything with ``generate``, ``{use: transformers, model: ...}``.
        words: its system turn, that says whom it plays.
        over: what it says when it has nothing more to say; the conversation ends there. None: it never ends one.
        call: keywords of its ``generate``: ``temperature``, ``max_completion``, ...

    Errors: UserError for what is no policy.
    """
    if not isinstance(policy, Answering):
        raise UserError(f"simulated_user.policy: got a {type(policy).__name__}, takes a policy of language")

    def environment(conversations: Sequence[Sequence[Turn]], seeds: Sequence[int] | None = None) -> list[Any]:
        asked = [[{"role": "system", "content": words}, *_turned(talk)] for talk in conversations]
        numbers = list(seeds) if seeds is not None else [random.Random(str(talk)).getrandbits(31) for talk in asked]
        replies = policy.generate(asked, numbers, **(call or {}))
        return [None if not reply.strip() or (over is not None and over in reply) else reply.strip() for reply in replies]

    return environment


def _turned(talk: Sequence[Turn]) -> list[Turn]:
    """A conversation as the user sees it, turns of one role behind each other as one."""
    turned: list[dict[str, Any]] = []
    for turn in talk:
        text = "".join(texts_of(turn)).strip()
        if turn["role"] not in OTHER or not text:
            continue
        if turned and turned[-1]["role"] == OTHER[turn["role"]]:
            turned[-1]["content"] += f"\n{text}"
        else:
            turned.append({"role": OTHER[turn["role"]], "content": text})
    return list(turned)
