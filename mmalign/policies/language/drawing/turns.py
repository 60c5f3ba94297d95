"""Several turns in a rollout: the policy says something, an environment answers, the policy goes on.

A row stays one sequence of tokens behind its prompt. What the environment said stands among them, outside of the mask, so that every method
reads such rows as any others, and no gradient comes from its words. Ids are never made again from text: those that were sampled are the
ones that are scored and trained, and a reply adds what the chat template writes from the end of one assistant's turn to where it asks for
the next (``replies.py``). Every further turn runs its row's beginning anew; rows that are over are not run again.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.abilities import Joined, Tooled
from mmalign.conversations import Turn, held
from mmalign.media import Broken
from mmalign.policies.language.drawing.drawing import Drawn
from mmalign.policies.language.drawing.replies import read_reply
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.shown import Shown, before, conversation
from mmalign.policies.settings import EngineSettings, Turns
from mmalign.types import UserError

Draw = Callable[[Sequence[Prompt], Tensor, Tensor, Tensor], Drawn]
"""(P prompts, the prompt of each row ``[R]``, which rows of all these are ``[R]``, uniform numbers ``[R, most]``) -> what they say."""


class Spoken(NamedTuple):
    """Rows as they were said. drawn: with what the environment said among the tokens, whose ``log_probs`` are NaN; ``cut`` also where a
    reply had no room. own: ``[R, T]`` bool, tokens of the policy. outputs: a text of each row, or its turns where there is an environment.
    counted: name -> mean over rows: ``turns`` of the policy, ``environment_errors`` (replies that say ``error: true``), ``pictures`` that
    it was shown, where it sees. shown: of each row the replies with pictures."""

    drawn: Drawn
    own: Tensor
    outputs: list[Any]
    counted: dict[str, float]
    shown: tuple[Shown, ...] = ()


class _Line(NamedTuple):
    """A turn of the policy's as it was drawn, see ``Drawn``. allowed: ``[T, W]``."""

    ids: list[int]
    log_probs: list[float]
    cut: bool
    allowed: Tensor


@dataclass
class _Row:
    """A conversation under way. asked: the prompt's turns. said: those that followed. own: tokens that count; sampled: of the policy."""

    prompt: Prompt
    asked: list[Turn]
    said: list[Turn] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    allowed: list[Tensor] = field(default_factory=list)
    shown: Shown = ()
    cut: bool = False

    def add(self, line: _Line) -> None:
        """Tokens of the policy."""
        self.ids += line.ids
        self.own += [True] * len(line.ids)
        self.sampled += [True] * len(line.ids)
        self.log_probs += line.log_probs
        self.allowed.append(line.allowed)

    def hear(self, reply: Prompt) -> None:
        """Tokens of the environment, with the pictures that they stand for."""
        ids, self.shown = reply.ids, (*self.shown, (len(self.ids), reply)) if reply.media else self.shown
        self.ids += ids
        self.own += [False] * len(ids)
        self.sampled += [False] * len(ids)
        self.log_probs += [torch.nan] * len(ids)
        self.allowed.append(self.allowed[-1].new_zeros((len(ids), self.allowed[-1].shape[-1])))

    @property
    def turns(self) -> int:
        """Of the policy."""
        return sum(turn["role"] == "assistant" for turn in self.said)

    def start(self, turn: int) -> int:
        """The place of the first token of a turn of the policy, from 0."""
        own = [False, *self.sampled]
        return [place for place in range(len(self.ids)) if own[place + 1] and not own[place]][turn]

    def until(self, turn: int) -> _Row:
        """The same conversation as it stood before a turn of the policy, of which nothing is its own."""
        end, said = self.start(turn), [place for place, one in enumerate(self.said) if one["role"] == "assistant"][turn]
        allowed = torch.cat(self.allowed)[:end]
        return replace(
            self, said=self.said[:said], ids=self.ids[:end], own=[False] * end, log_probs=[torch.nan] * end,
            allowed=[allowed] if end else [], sampled=self.sampled[:end], shown=before(self.shown, end), cut=False,
        )  # fmt: skip

    def forget(self, turn: int) -> None:
        """What stands before a turn of the policy is not its own any more."""
        end = self.start(turn)
        self.own[:end] = [False] * end

    def so_far(self) -> Prompt:
        """All of it as a prompt."""
        if self.shown:
            return conversation(self.prompt, self.ids, self.shown)
        return self.prompt.followed(self.ids)


def tools_of(turns: Turns | None) -> Sequence[Mapping[str, Any]]:
    """What an environment says of its tools, for prompts to list them; nothing where it has none."""
    return turns.environment.schemas if turns is not None and isinstance(turns.environment, Tooled) else ()


def refuse_turns(turns: Turns | None, engine: EngineSettings | None, *, sees: bool) -> None:
    """UserError for an environment that is none, one that shows pictures to a model without eyes, and turns that a server would draw."""
    if turns is not None and not callable(turns.environment):
        got = type(turns.environment).__name__
        raise UserError(f"policy.turns.environment: got a {got}, takes a callable (conversations) -> replies")
    if not sees and (looking := getattr(turns and turns.environment, "looks", ())):
        why = "looks at pictures, and the policy is a language model without eyes"
        raise UserError(f"policy.turns.environment: {', '.join(looking)} {why}; takes a vision-language model, or other tools")
    if turns is not None and engine is not None:
        raise UserError("policy.engine: got turns too, and a server draws one answer to a prompt; takes one of them")


def introduced(turns: Turns | None, policy: Any) -> Turns | None:
    """Turns whose environment knows the policy: its reference may play a part in it, in single answers."""
    if turns is not None and isinstance(turns.environment, Joined) and turns.environment.awaits:

        def answers(prompts: list[Any], seeds: list[int], **call: Any) -> list[Any]:
            alone = copy.copy(policy)
            alone.turns = None
            with policy.using("ref"):
                return alone.generate(prompts, seeds, **call)  # type: ignore[no-any-return]

        turns.environment.join(answers)
    return turns


def spoken(
    turns: Turns | None, chat: Chat, encoded: Sequence[Prompt], sources: Sequence[Any], which: Tensor, uniform: Tensor, draw: Draw
) -> Spoken:
    """Rows of prompts, said in one turn, or in several with an environment's replies between them.

    encoded, sources: P prompts, and what they were made of. which: ``[R]`` the prompt of each row. uniform: ``[R, most]``, a number for
    each token, so that a row does not depend on others. Errors: UserError for an environment that fails, hangs, or gives what is no reply.
    """
    every = torch.arange(len(which))
    if turns is None:
        drawn = draw(encoded, which, every, uniform)
        texts = [chat.text(line[:length]) for line, length in zip(drawn.tokens.tolist(), drawn.lengths.tolist(), strict=True)]
        return Spoken(drawn, torch.arange(drawn.tokens.shape[1]) < drawn.lengths.unsqueeze(1), texts, {})
    rows = [_Row(encoded[place], asked(chat, sources[place])) for place in which.tolist()]
    leader = {place: number for number, place in reversed([*enumerate(which.tolist())])}
    leaders = sorted(leader.values()) if turns.parting else every.tolist()
    begin = _Beginning(encoded, which, uniform, draw)
    _played(turns, chat, rows, leaders, begin)
    if turns.parting:
        for number, place in enumerate(which.tolist()):
            if (first := leader[place]) != number:
                rows[number] = rows[first].until(_parting(rows[first], uniform[first]))
        for first in leaders:
            rows[first].forget(_parting(rows[first], uniform[first]))
        _played(turns, chat, rows, [number for number in every.tolist() if number not in set(leaders)], begin)
    return _joined(rows, sees=chat.vision is not None)


class _Beginning(NamedTuple):
    """What rows begin with, see ``spoken``."""

    encoded: Sequence[Prompt]
    which: Tensor
    uniform: Tensor
    draw: Draw


def _played(turns: Turns, chat: Chat, rows: Sequence[_Row], alive: list[int], begin: _Beginning) -> None:
    """Lets rows go on until each is over: a turn, what the environment says to it, the next turn."""
    uniform, most = begin.uniform, begin.uniform.shape[1]
    while alive:
        starts, numbers = [len(rows[number].ids) for number in alive], torch.tensor(alive)
        width = most - min(starts) if turns.max_turn is None else min(most - min(starts), turns.max_turn)
        lots = [uniform[number, start : start + width] for number, start in zip(alive, starts, strict=True)]
        lot = torch.stack([nn.functional.pad(one, (0, width - len(one))) for one in lots])
        if any(starts):
            drawn = begin.draw([rows[number].so_far() for number in alive], torch.arange(len(alive)), numbers, lot)
        else:
            drawn = begin.draw(begin.encoded, begin.which[numbers], numbers, lot)
        alive = [number for number, line in zip(alive, _lines(drawn), strict=True) if _said(rows[number], line, most, chat)]
        alive = _answered(turns, chat, rows, [number for number in alive if rows[number].turns < turns.limit], uniform)


def _parting(row: _Row, uniform: Tensor) -> int:
    """The turn at which other rows leave this one, from 0, each of its turns as likely; by its last number, ``uniform [most]``."""
    return int(float(uniform[-1]) * row.turns)


def asked(chat: Chat, source: Any) -> list[Turn]:
    """A prompt as turns, with the policy's system turn where a template writes it."""
    if chat.template and not chat.arrives_rendered(source):
        return chat.turns(source)
    return [{"role": "user", "content": source}] if isinstance(source, str) else list(source)


def _lines(drawn: Drawn) -> list[_Line]:
    """What each row said."""
    tables = (drawn.tokens.tolist(), drawn.log_probs.tolist(), drawn.lengths.tolist(), drawn.cut.tolist(), drawn.allowed)
    return [
        _Line(ids[:length], log_probs[:length], cut, allowed[:length]) for ids, log_probs, length, cut, allowed in zip(*tables, strict=True)
    ]


def _said(row: _Row, line: _Line, most: int, chat: Chat) -> bool:
    """Adds a turn of the policy's, as far as there is room; whether it came to its end."""
    room = most - len(row.ids)
    row.cut = line.cut or len(line.ids) > room
    line = _Line(line.ids[:room], line.log_probs[:room], row.cut, line.allowed[:room])
    row.add(line)
    row.said.append(_turn(chat, line.ids))
    return not row.cut


def _turn(chat: Chat, ids: Sequence[int]) -> Turn:
    """What the policy said; with its ``calls``, and the special tokens that mark them, where the chat template has a form for calls."""
    text = chat.text(ids)
    if chat.calls is None:
        return {"role": "assistant", "content": text}
    words = chat.words(ids[:-1] if ids and ids[-1] in chat.stops else ids)
    calls = chat.calls(words)
    return {"role": "assistant", "content": words if calls else text, "calls": calls}


def _answered(turns: Turns, chat: Chat, rows: Sequence[_Row], alive: Sequence[int], uniform: Tensor) -> list[int]:
    """Asks the environment, and adds what it says; the rows that go on."""
    if not alive:
        return []
    talks = [[*rows[number].asked, *rows[number].said] for number in alive]
    seeds = [int(uniform[number, len(rows[number].ids) - 1] * 2**31) for number in alive]
    going = []
    for number, reply in zip(alive, _replies(turns, talks, seeds), strict=True):
        row = rows[number]
        if not reply:
            continue
        read, added = read_reply(chat, reply)
        if len(row.ids) + len(read) >= uniform.shape[1]:
            row.cut = True
            continue
        row.said += added
        row.hear(read)
        going.append(number)
    return going


def _replies(turns: Turns, talks: list[list[Turn]], seeds: list[int]) -> list[list[Turn]]:
    """What the environment says to each conversation, as turns; none where it is over."""
    given = {"seeds": seeds} if "seeds" in inspect.signature(turns.environment).parameters else {}
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            with torch.no_grad():
                answer.set_result(turns.environment(talks, **given))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    wait([answer], turns.seconds)
    if not answer.done():
        raise UserError(f"policy.turns.environment: gave no reply in {turns.seconds:g} s; takes more seconds, or one that does not hang")
    if (error := answer.exception()) is not None:
        if isinstance(error, UserError):
            raise error
        raise UserError(f"policy.turns.environment: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    replies = answer.result()
    if not isinstance(replies, (list, tuple)) or len(replies) != len(talks):
        what = f"{len(replies)} replies" if isinstance(replies, (list, tuple)) else f"a {type(replies).__name__}"
        raise UserError(f"policy.turns.environment: got {what} for {len(talks)} conversations, takes a list of as many")
    try:
        return [[held(turn) for turn in _as_turns(reply)] for reply in replies]
    except Broken as error:
        raise UserError(f"policy.turns.environment: replied with a picture: {error}") from error


def _as_turns(reply: Any) -> list[Turn]:
    """A reply as turns: a text is the user's."""
    if reply is None:
        return []
    turns: list[Any] = [{"role": "user", "content": reply}] if isinstance(reply, str) else [reply]
    turns = list(reply) if isinstance(reply, (list, tuple)) else turns
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("role") in (None, "assistant") or not turn.get("content"):
            what = f"a turn of {turn.get('role')!r}" if isinstance(turn, Mapping) else f"a {type(turn).__name__}"
            raise UserError(f"policy.turns.environment: replied {what}; takes a text, turns of user or tool with a content, or None")
    return turns


def _joined(rows: Sequence[_Row], *, sees: bool) -> Spoken:
    """Rows as tables, filled up to the longest."""
    width = max(len(row.ids) for row in rows)

    def table(values: Sequence[Sequence[Any]], kind: torch.dtype) -> Tensor:
        return torch.stack([nn.functional.pad(torch.tensor(line, dtype=kind), (0, width - len(line))) for line in values])

    drawn = Drawn(
        tokens=table([row.ids for row in rows], torch.int64),
        lengths=torch.tensor([len(row.ids) for row in rows]),
        cut=torch.tensor([row.cut for row in rows]),
        log_probs=table([row.log_probs for row in rows], torch.float64),
        allowed=nn.utils.rnn.pad_sequence([torch.cat(row.allowed) for row in rows], batch_first=True),
    )
    turns = [row.turns for row in rows]
    errors = [sum(bool(turn.get("error")) for turn in row.said) for row in rows]
    pictures = [sum(len(reply.media) for _, reply in row.shown) for row in rows]
    counted = {"turns": sum(turns) / len(rows), "environment_errors": sum(errors) / len(rows)}
    counted |= {"pictures": sum(pictures) / len(rows)} if sees else {}
    shown = tuple(row.shown for row in rows)
    return Spoken(drawn, table([row.own for row in rows], torch.bool), [row.said for row in rows], counted, shown)
