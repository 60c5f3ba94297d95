"""Contents of turns: strings, or lists of parts (text, images, videos), and what templates and models are given of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.media import KINDS, Medium, address, canonical_bytes, is_address
from mmalign.types import UserError

Turn = Mapping[str, Any]
SOURCES = ("path", "url", "bytes")
MADE_BETTER = "\n\nAnswer: {answer}\n\nThe same answer, made better:"
"""How an answer is shown to who is to make it better, behind its prompt."""
JUDGED_BY = "\n\nJudge by these rules:\n{principles}"
"""How principles are named, behind a prompt."""
COMPARED = "\n\nResponse A: {first}\n\nResponse B: {second}\n\nWhich response is better? Answer with the letter alone: A or B."
"""How two answers are shown to who is to say which is the better one, behind their prompt."""


def media_of(turns: Sequence[Turn]) -> list[Medium]:
    """Images and videos of a conversation in their order. Errors: UserError for parts of another form."""
    return [medium for turn in turns for medium in _media(turn.get("content"))]


def texts_of(turn: Turn) -> list[str]:
    """The words of a turn."""
    content = turn.get("content")
    return [content] if isinstance(content, str) else [str(part.get("text", "")) for part in content or () if part.get("type") == "text"]


def held(turn: Turn) -> Turn:
    """A turn whose pictures are addresses, as files can hold them: ``data:`` URLs of those that are in memory. Errors: Broken."""
    content = turn.get("content")
    if content is None or isinstance(content, str):
        return turn
    return {**turn, "content": [_addressed(part) if part.get("type") == "image" else part for part in content]}


def _addressed(part: Mapping[str, Any]) -> Mapping[str, Any]:
    [source] = _sources(part) or [None]
    if isinstance(source, (str, Path)):
        return {"type": "image", "url" if is_address(source) else "path": str(source)}
    return {"type": "image", "url": address(source)}


def without(turns: Sequence[Turn], gone: set[int]) -> list[Turn]:
    """A conversation without its media number ``gone``."""
    count, left = 0, list[Turn]()
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, str):
            left.append(turn)
            continue
        kept = []
        for part in content or ():
            is_medium = part.get("type") in KINDS
            if not (is_medium and count in gone):
                kept.append(part)
            count += is_medium
        left.append({**turn, "content": kept})
    return left


def as_parts(turns: Sequence[Turn]) -> list[Turn]:
    """Every content as a list of parts, media without what they hold, as templates of vision-language models take it."""
    return [{**turn, "content": list(_parts(turn.get("content")))} for turn in turns]


def as_text(turns: Sequence[Turn]) -> list[Turn]:
    """Contents without media as strings, as templates of language models take them."""
    return [turn if _media(turn.get("content")) else {**turn, "content": "".join(texts_of(turn))} for turn in turns]


def _parts(content: Any) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"type": "text", "text": content}
        return
    for part in content or ():
        yield {"type": "text", "text": part.get("text", "")} if part.get("type") == "text" else {"type": part.get("type")}


def _media(content: Any) -> list[Medium]:
    if content is None or isinstance(content, str):
        return []
    media = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            continue
        if kind not in KINDS:
            raise UserError(f"prompt: got a part of type {kind!r}, takes text, {', '.join(KINDS)} (with path, or with the medium itself)")
        sources = _sources(part)
        if len(sources) != 1:
            raise UserError(f"prompt: got a part {kind} with {len(sources)} sources, takes one of {', '.join((kind, *SOURCES))}")
        media.append(Medium(kind, sources[0]))
    return media


def _sources(part: Mapping[str, Any]) -> list[Any]:
    """What a part names as its medium, under its kind or one of ``SOURCES``."""
    return [part[key] for key in (str(part.get("type")), *SOURCES) if part.get(key) is not None]


def question(prompt: Any) -> str:
    """A prompt as a string; of a conversation, the words that the user said last."""
    return prompt if isinstance(prompt, str) else last_words(prompt, "user") or ""


def known_by(prompt: Any) -> str:
    """What a prompt is found by: its words, and before them the pictures and videos that the user sent with the last of them."""
    if isinstance(prompt, str):
        return prompt.strip()
    media = [f"<{part['type']} {_name(part)}>" for part in _parts_of(_last_turn(prompt, "user")) if part.get("type") in KINDS]
    return " ".join([*media, question(prompt).strip()])


def told_apart_by(prompt: Any) -> str:
    """What prompts have alike that say the same, in all of their turns and media: the words, and a hash of what is no words."""

    def word(value: Any) -> str:
        return str(value) if isinstance(value, Path) else hashlib.sha256(canonical_bytes(value)).hexdigest()

    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=word)


def _name(part: Mapping[str, Any]) -> str:
    """A medium's path or address, or a hash of what it holds."""
    source = next(iter(_sources(part)), "")
    return str(source) if isinstance(source, (str, Path)) else hashlib.sha256(canonical_bytes(source)).hexdigest()[:16]


def last_words(turns: Any, role: str) -> str | None:
    """The words of the last turn of a role; None where turns are none, or nobody of that role said anything."""
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    return next((_words(turn["content"]) for turn in reversed(turns) if turn.get("role") == role and turn.get("content")), None)


def answer_of(turns: Any) -> str | None:
    """The words of the assistant's last turn, none where it said nothing; None for what is no conversation with one.

    Examples:
        >>> answer_of([{"role": "assistant", "content": "2 * 3?"}, {"role": "tool", "content": "6"}, {"role": "assistant", "content": ""}])
        ''
    """
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    own = [turn for turn in turns if turn.get("role") == "assistant"]
    return _words(own[-1].get("content") or "") if own else None


def _words(content: Any) -> str:
    if isinstance(content, (list, tuple)):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("type") == "text")
    return str(content)


REFUSALS = (
    "i can't", "i cannot", "i can not", "i won't", "i will not", "i'm sorry", "i am sorry", "i'm unable", "i am unable", "i'm not able",
    "i am not able", "i must decline", "i have to decline", "i must refuse", "i apologize", "not something i can help",
)  # fmt: skip
"""Words that a refusal begins with."""


def refuses(text: str, phrases: Sequence[str] = REFUSALS, within: int = 200) -> bool:
    """Whether one of some phrases, in any case, stands in so many characters of an answer's beginning."""
    beginning = text.strip()[:within].casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return any(phrase.casefold() in beginning for phrase in phrases)


def said_after(prompt: Any, words: str) -> Any:
    """A prompt with words behind the last thing that its user says; the prompt itself is not touched.

    Errors: UserError for a conversation in which the user says nothing.
    """
    if isinstance(prompt, str):
        return prompt + words
    place = next((number for number in reversed(range(len(prompt))) if prompt[number].get("role") == "user"), None)
    if place is None:
        raise UserError("prompt: no turn of its user, which words could be put behind; takes a conversation with one")
    content = prompt[place].get("content")
    said = content + words if isinstance(content, str) else [*(content or ()), {"type": "text", "text": words}]
    return [{**turn, "content": said} if number == place else turn for number, turn in enumerate(prompt)]


def compares(key: str, words: str, say: Sequence[str]) -> bool:
    """Whether the words of a judge's question show two answers, ``{first}`` and ``{second}``, or one, ``{answer}``. say: its two verdicts.

    Errors: UserError, by the ``key`` of the node, for words that show neither, and for verdicts that are not two different texts.
    """
    shown = {name for name in ("first", "second", "answer") if f"{{{name}}}" in words}
    if shown not in ({"first", "second"}, {"answer"}):
        raise UserError(f"{key}.words: got {words!r}, takes words with {{first}} and {{second}} in them, or with {{answer}}")
    if len(say) != 2 or say[0] == say[1] or not all(say):
        raise UserError(f"{key}.say: got {say!r}, takes two different texts")
    return "first" in shown


def shown_in(words: str, answers: Mapping[str, str]) -> str:
    """Words with an answer in place of each ``{name}``; what answers hold themselves stays as it is.

    Examples:
        >>> shown_in("A: {first} B: {second}", {"first": "{second}", "second": "no"})
        'A: {second} B: no'
    """
    places = "|".join(re.escape(f"{{{name}}}") for name in answers)
    return re.sub(places, lambda found: answers[found[0][1:-1]], words)


def said_instead(prompt: Any, words: str) -> Any:
    """A prompt in which its user says other words last; what else that turn holds stays before them, and the prompt is not touched.

    Errors: UserError for a conversation in which the user says nothing.
    """
    if isinstance(prompt, str):
        return words
    place = next((number for number in reversed(range(len(prompt))) if prompt[number].get("role") == "user"), None)
    if place is None:
        raise UserError("prompt: no turn of its user, whose words could be others; takes a conversation with one")
    content = prompt[place].get("content")
    media = [part for part in content if part.get("type") != "text"] if isinstance(content, (list, tuple)) else []
    said = [*media, {"type": "text", "text": words}] if media else words
    return [{**turn, "content": said} if number == place else turn for number, turn in enumerate(prompt)]


def words_and_images(prompt: Any) -> tuple[str, list[Any]]:
    """A prompt's words (a conversation's last user turn) and its images: paths, addresses, bytes, PIL images or tensors."""
    if not isinstance(prompt, (list, tuple)):
        return str(prompt), []
    words = [str(part.get("text", "")) for part in _parts_of(_last_turn(prompt, "user")) if part.get("type") == "text"]
    parts = [part for turn in prompt if isinstance(turn, Mapping) for part in _parts_of(turn)]
    images = [next(iter(_sources(part)), None) for part in parts if part.get("type") == "image"]
    return " ".join(word for word in words if word), images


def _last_turn(turns: Any, role: str) -> Mapping[str, Any]:
    """The last turn of a role; an empty one where there is none."""
    turns = turns if isinstance(turns, (list, tuple)) else []
    return next((turn for turn in reversed(turns) if isinstance(turn, Mapping) and turn.get("role") == role), {})


def _parts_of(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn.get("content") or ""
    return [{"type": "text", "text": content}] if isinstance(content, str) else [part for part in content if isinstance(part, Mapping)]


def without_media(prompt: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation without its images and videos."""
    turns = []
    for turn in prompt:
        parts = turn.get("content", "")
        kept = parts if isinstance(parts, str) else [part for part in parts if part.get("type") not in KINDS]
        turns.append({**turn, "content": kept})
    return turns


def has_media(prompt: Any) -> bool:
    """Whether a conversation holds an image or a video."""
    if not isinstance(prompt, (list, tuple)):
        return False
    return any(part.get("type") in KINDS for turn in prompt if isinstance(turn, Mapping) for part in _parts_of(turn))
