"""Rewards behind an address: ``mmalign serve-reward CONFIG``, for runs on other machines or in other environments (`served`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmalign.arguments import calls
from mmalign.serving.app import Serve
from mmalign.serving.environments import INSIDE
from mmalign.serving.listening import listen
from mmalign.serving.oracles import ORACLE, Compared
from mmalign.types import UserError


def serve_reward(
    rewards: Mapping[str, Callable[..., Any]] | None = None,
    *,
    oracle: Callable[..., Any] | None = None,
    serve: Serve = Serve(),  # noqa: B008 (records are frozen)
    requirements: Path | None = None,
    with_stdin: bool = False,
) -> None:
    """Serves rewards over HTTP until it is told to stop (SIGTERM, Ctrl-C); a question on its way then still gets its answer.

    Args:
        rewards: name -> reward, under which it is asked for.
        oracle: of pairs, which runs ask as ``oracle: {use: served_pairs, url: ...}``; among the rewards it is called ``oracle``.
        serve: where it listens, the token that it takes, and how much may be asked.
        requirements: a file of pip's for an environment of its own, in which ``mmalign serve-reward`` starts itself again.
        with_stdin: it also stops where what comes in ends, as it does with whoever started it.

    Errors: UserError for neither a reward nor an oracle, a reward of the name ``oracle`` beside one, an address that cannot be had, a token
    that is missing, and requirements without the command.
    """
    asked = dict(rewards or {})
    if oracle is not None and ORACLE in asked:
        raise UserError(f"rewards.{ORACLE}: is what the oracle is called; takes another name")
    asked |= {} if oracle is None else {ORACLE: Compared(oracle)}
    if not asked or not all(callable(reward) for reward in asked.values()):
        raise UserError(f"rewards: got {asked!r}, takes at least one {{name: reward}}, or an oracle")
    if requirements is not None and INSIDE not in os.environ:
        raise UserError("requirements: this process is in no environment made of them; takes mmalign serve-reward CONFIG, which makes it")
    described = calls.described()
    config = described.get("rewards") if oracle is None else {key: described.get(key) for key in ("rewards", "oracle")}
    listen(asked, serve, config=config, say=_say, with_stdin=with_stdin)


def _say(line: str) -> None:
    print(line, flush=True, file=sys.stdout)
