"""What a chat template does to a text, found in the text: where it begins, what it ends with, and what of a turn it keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmalign.conversations import Turn, texts_of
from mmalign.types import UserError

PROBE: list[dict[str, Any]] = [{"role": "user", "content": "0"}]
"""A conversation that shows what a template writes around a user's words."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys under which an assistant's turn holds its reasoning apart from its content."""


def source(writer: Any) -> str:
    """A tokenizer's or processor's chat template, all of them where there are several."""
    template = writer.chat_template
    return "".join(template.values()) if isinstance(template, Mapping) else str(template)


def ends_of(tokenizer: Any, stops: Sequence[int]) -> tuple[str, ...]:
    """Texts of the ids that end a completion, as far as they were added to the tokenizer: no word of a text is one by chance."""
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return tuple(str(tokenizer.convert_ids_to_tokens(stop)) for stop in stops if stop in added)


@dataclass(frozen=True)
class Frame:
    """What tells a text that a template made from what a user says.

    opening: special tokens that the template writes before a user's words, one of which begins the text; or head and tail: what it writes
    before them stands in the text, and what asks for the assistant ends it.
    """

    opening: tuple[str, ...] = ()
    head: str = ""
    tail: str = ""

    def around(self, text: str) -> bool:
        """Whether a text is one that the template made."""
        framed = bool(self.head and self.tail) and self.head in text and text.rstrip().endswith(self.tail)
        return framed or text.startswith(self.opening)


def frame(with_ask: str, without_ask: str, tokenizer: Any) -> Frame:
    """Of a template that rendered ``PROBE``, with and without what asks for the assistant."""
    words = str(PROBE[0]["content"])
    if words not in with_ask:
        return Frame((tokenizer.bos_token,) if tokenizer.bos_token else ())
    head, _, tail = with_ask.rpartition(words)
    bos = tokenizer.bos_token or ""
    special = {*tokenizer.all_special_tokens, *(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)}
    media = {str(getattr(tokenizer, f"{kind}_token", None)) for kind in ("image", "video", "audio")}
    opening = {token for token in special - media if token in head} | ({bos} if bos else set())
    ask = with_ask.removeprefix(without_ask) if with_ask.startswith(without_ask) and with_ask != without_ask else tail
    return Frame(tuple(sorted(opening)), head.removeprefix(bos).strip(), ask.strip())


def adds_special(tokenizer: Any, text: str) -> bool:
    """Whether a tokenizer is to put its own special tokens before a text, as processors' templates do it: BOS once."""
    bos = tokenizer.bos_token
    return not (bos and text.startswith(bos))


def holds(text: str, words: str) -> bool:
    """Whether a text holds some words, spaces aside, which templates strip and add."""
    return "".join(words.split()) in "".join(text.split())


def overlap(before: str, words: str) -> int:
    """How many letters of an answer stand before it already: a tag (``<think>``) that the template opens and the answer repeats."""
    tag = re.match(r"\s*(<[^<>]+>)\s*", words)
    if tag is None or not before.rstrip().endswith(tag.group(1)):
        return 0
    return tag.end() if before != before.rstrip() else tag.end(1)


def unended(turn: Turn, ends: tuple[str, ...]) -> Turn:
    """A turn; of the assistant's, without the ends that its words carry, which the template writes."""
    content = turn.get("content")
    if turn.get("role") != "assistant" or not content:
        return turn
    if isinstance(content, str):
        return {**turn, "content": without_ends(content, ends)}
    *before, last = content
    return {**turn, "content": [*before, {**last, "text": without_ends(last["text"], ends)}]} if last.get("type") == "text" else turn


def without_ends(text: str, ends: tuple[str, ...]) -> str:
    """A text without the ends that it carries, and the spaces before them."""
    while (bare := text.rstrip()).endswith(ends):
        text = bare.removesuffix(next(end for end in ends if bare.endswith(end)))
    return text


def keeps(text: str, turns: Sequence[Turn]) -> bool:
    """Whether a text holds what the assistant says in some turns, spaces aside.

    Errors: UserError for reasoning under a key of its own that it drops.
    """
    own = [turn for turn in turns if turn.get("role") == "assistant"]
    for key, turn in ((key, turn) for turn in own for key in REASONING if turn.get(key)):
        if not holds(text, str(turn[key])):
            raise UserError(
                f"policy.template: drops the assistant's {key}; takes reasoning inside of the content, or a template that writes it"
            )
    return all(holds(text, part) for turn in own for part in texts_of(turn))


def unopened(before: str, after: str, turn: Turn) -> str | None:
    """The prompt of an answer without the reasoning that the template opens for the assistant: up to where the answer stands.

    before, after: what the template makes of the conversation without the answer and with it. None where it opens no reasoning.
    """
    words = "".join(texts_of(turn)).strip()
    start = after.rfind(words) if words else -1
    return after[:start] if start > 0 and not after.startswith(before) and before.startswith(after[:start].rstrip()) else None
