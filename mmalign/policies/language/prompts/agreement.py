"""Whether the ids that are trained are those that transformers itself makes for a user, token by token.

A prompt, and an answer behind it, go once through ``apply_chat_template(tokenize=True)`` of the tokenizer or processor (without a template:
through the tokenizer or processor called with a text), and once through ``Chat``. Where they differ, the first token that does is named.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.conversations import Turn, as_text, media_of
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.vision import Vision


@dataclass(frozen=True)
class Agreement:
    """Tokens of one row. ours: as they are trained; theirs: as ``by`` makes them. ended: the last of ours is an end that theirs lacks."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    by: str
    ended: bool = False

    @property
    def place(self) -> int | None:
        """The first token that differs, None where all are the same; what a template writes behind an answer's end is left out."""
        ours = self.ours[: len(self.ours) - self.ended]
        pairs = enumerate(zip(ours, self.theirs, strict=False))
        first = next((place for place, (own, other) in pairs if own != other), None)
        return min(len(ours), len(self.theirs)) if first is None and len(ours) != len(self.theirs) else first

    def __str__(self) -> str:
        count = len(self.ours)
        if self.place is None:
            return f"the same {count} tokens as {self.by}{', and an end behind them' if self.ended else ''}"
        own, other = (repr(side[self.place]) if self.place < len(side) else "no token" for side in (self.ours, self.theirs))
        return f"token {self.place} of {count} is {own} here, and {other} by {self.by} (of {len(self.theirs)})"


class FirstRow:
    """Compares the first row that it is given, and warns where the ids differ; later rows cost nothing. found: what it came to."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.found: Agreement | None = None

    def __call__(self, prompt: Any, output: Any = None) -> None:
        if self.found is None:
            self.found = compared(self.chat, prompt, output)
            if self.found.place is not None:
                warnings.warn(f"policy.tokenizer: {self.found}", stacklevel=5)


def compared(chat: Chat, prompt: Any, output: Any = None) -> Agreement:
    """A prompt, and an answer where there is one, both ways. Errors: UserError as ``Chat.prompt`` and ``Chat.row``."""
    words = chat.tokenizer
    if output is None:
        ids = list(chat.prompt(prompt).ids)
    else:
        row = chat.row(prompt, output)
        ids = [*row.prompt.ids, *row.completion]
    theirs, by = _ids_by_transformers(chat, prompt, output)
    if output is not None and not words.decode(theirs[len(ids) :], skip_special_tokens=True).strip():
        theirs = theirs[: len(ids)]  # a line break or a second end behind the answer's own
    ended = output is not None and ids[:-1] == theirs and ids[-1] in chat.stops
    return Agreement(tuple(words.convert_ids_to_tokens(ids)), tuple(words.convert_ids_to_tokens(theirs)), by, ended)


def _ids_by_transformers(chat: Chat, prompt: Any, output: Any) -> tuple[list[int], str]:
    reader = chat.tokenizer if chat.vision is None else chat.vision.processor
    if not chat.template or chat.arrives_rendered(prompt):
        return _ids_as_called(chat, prompt, output), f"{type(reader).__name__}(text)"
    turns = chat.turns(prompt)
    media = media_of(turns)
    whole = turns if output is None else [*turns, *chat.answer(output)]
    ask, by = output is None, f"{type(chat.writer).__name__}.apply_chat_template"
    options: dict[str, Any] = {**chat.options, "tokenize": True, "return_dict": True, "add_generation_prompt": ask}
    if chat.vision is None:
        return _line(chat.writer.apply_chat_template(as_text(whole), **options)), by
    if chat.writer is not chat.tokenizer and all(medium.kind == "image" for medium in media) and chat.takes_parts(whole, ask=ask):
        return _line(chat.writer.apply_chat_template(_with_pictures(chat.vision, whole), **options)), by
    text = chat.rendered(whole, ask=ask)  # of videos, the processor's own loader would choose other frames
    return _line(chat.vision.process(text, media)), f"{type(reader).__name__}(text, images, videos)"


def _ids_as_called(chat: Chat, prompt: Any, output: Any) -> list[int]:
    """A text through the tokenizer or the processor, as a user calls it, and the answer's words behind it."""
    bos = chat.tokenizer.bos_token
    more = {} if output is None else {"output": chat.answer(output)}
    words = "".join(turn["content"] for turn in more.get("output", []) if isinstance(turn["content"], str))
    if not isinstance(prompt, str):
        own = chat.prompt(prompt)
        ids = _line(chat.vision.process(own.text, own.media)) if chat.vision is not None else list(own.ids)
    else:
        own_bos = bool(bos) and prompt.startswith(bos)
        ids = _line(chat.tokenizer(prompt, **({"add_special_tokens": False} if own_bos else {})))
    return [*ids, *chat.tokenizer(words, add_special_tokens=False)["input_ids"]] if words else ids


def _with_pictures(vision: Vision, turns: Sequence[Turn]) -> list[Turn]:
    """A conversation whose parts hold their images, as a user hands it to a processor."""
    with_pictures: list[Turn] = []
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, str):
            with_pictures.append({**turn, "content": [{"type": "text", "text": content}]})
            continue
        media = iter(media_of([turn]))
        parts = [part if part.get("type") == "text" else {"type": "image", "image": vision.picture(next(media))} for part in content or ()]
        with_pictures.append({**turn, "content": parts})
    return with_pictures


def _line(encoding: Any) -> list[int]:
    """The ids of one text; none of an empty one, which may be a prompt all the same: a tokenizer's beginning is put before it."""
    ids = encoding["input_ids"]
    ids = ids.tolist() if not isinstance(ids, list) else ids
    return [int(token) for token in (ids[0] if ids and isinstance(ids[0], list) else ids)]
