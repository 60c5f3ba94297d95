"""How the data sets people have say which answer about a picture is better: a row -> records whose prompts hold their media.

A row is one of texts (``texts.py``) with media: in columns of its own, or in the parts of its conversation. Media of columns stand where
the prompt says ``<image>`` or ``<video>``, and where it says nothing, before the first words of the user's. In a row without such
columns, in answers and beside parts those are words like any others (HTML has a ``<video>``), as long as they do not stand on a line of
their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmalign.data._reading.parsing import parsed
from mmalign.data._reading.tables import Row, placed
from mmalign.data._schemas import columns
from mmalign.data._schemas.columns import Layout
from mmalign.data._schemas.texts import with_system
from mmalign.data._schemas.turns import Text, Turns, before_the_answer, conversation, decoded
from mmalign.media import Broken

KINDS = ("image", "video")
MARK = re.compile(r"\s*<(image|video)>\s*")
ALONE = re.compile(r"(?:\A|\n)[ \t]*<(image|video)>[ \t]*(?=\n|\Z)")  # on a line of its own
Medium = tuple[str, Any]  # image or video, and its path or its bytes


def opened(row: Row) -> Row:
    """RLHF-V's ``text``, an object with ``question, chosen, rejected``, mostly as a string of JSON, as columns. Errors: Broken."""
    text = row.get("text")
    if "chosen" in row and "rejected" in row and not isinstance(text, Mapping):
        return row
    if isinstance(text, (str, bytes)):
        try:
            text = parsed(text)
        except Broken as error:
            raise Broken(f"text: {error}") from error
    if not isinstance(text, Mapping):
        raise Broken("text: takes an object with question, chosen and rejected")
    return {**{key: value for key, value in row.items() if key not in ("text", "prompt", "question")}, **text}


def kind_of(row: Row, names: columns.Names) -> str:
    """The kind that a row looks like, ``rlhf_v`` or one of ``columns.kind_of``. Errors: Broken where it looks like none."""
    low = columns.plain(row, names)
    if {"image", "text"} <= low.keys() and "chosen" not in low and not low.keys() & {*columns.TALKS}:
        return "rlhf_v"
    return columns.kind_of(row, names)


def put(record: Any, row: Row, names: columns.Names, layout: Layout) -> Any:
    """A record with the media of its row in its prompt. Errors: Broken where places and media do not go together."""
    media, read = columns.media(row, names)
    for key in read:
        layout.unread.pop(key, None)
    answers = _answers(record)
    prompt = place_media(record.prompt, [(kind, _of_row(row, source)) for kind, source in media], answers)
    if not isinstance(prompt, str):
        prompt = [{**turn, "content": _placed(row, turn["content"])} for turn in prompt]
    if isinstance(prompt, str) or not any(isinstance(turn["content"], list) for turn in prompt):
        _no_media(layout.unread)
    return record._replace(prompt=prompt)


def prompt(row: Row, names: columns.Names) -> tuple[Turns, Row]:
    """The prompt of a row with its media, as a conversation that asks for an answer, and what else the row says. Errors: Broken.

    A conversation of LLaVA's or ShareGPT's (``messages``, ``conversations``) that ends with an answer is asked up to there, and its last
    words are the column ``answer``, unless the row has one.
    """
    layout = columns.prompt_alone(row, names)
    turns = _turns(with_system(conversation(layout.row, "prompt"), layout.row.get("system")))
    answer: Row = {}
    if turns[-1]["role"] == "assistant" and not columns.has(columns.plain(row, names), "prompt"):
        turns, replies = before_the_answer(turns, "messages")
        answer = {"answer": replies[-1]["content"]}
    media, read = columns.media(row, names)
    whole = _turns(place_media(turns, [(kind, _of_row(row, source)) for kind, source in media], []))
    if whole[-1]["role"] == "assistant":
        raise Broken("prompt: ends with the assistant's turn")
    unread = {key: value for key, value in layout.unread.items() if key not in read}
    whole = [{**turn, "content": _placed(row, turn["content"])} for turn in whole]
    if not any(isinstance(turn["content"], list) for turn in whole):
        _no_media(unread)
    return whole, {**answer, **{key: value for key, value in row.items() if columns.low(key) in unread and key not in names.values()}}


def _no_media(unread: Mapping[str, Any]) -> None:
    """Errors: Broken for media that nobody reads, of a row that has no other."""
    for key, value in unread.items():
        if columns.holds_media(value):
            raise Broken(f"holds a medium under {key!r}, which nobody reads (columns: {{image: {key}}}, if it is one)")


def _turns(prompt: Text) -> Turns:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _of_row(row: Row, source: Any) -> Any:
    return placed(row, decoded(source, "image"))


def _placed(row: Row, content: Any) -> Any:
    """A content whose media are named by ``path``, as everybody else reads them."""
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else {"type": part["type"], "path": placed(row, part["source"])} for part in content]


def _answers(record: Any) -> list[str]:
    outputs = [getattr(record, name) for name in record._fields if name in ("first", "second", "output")] or list(record.outputs)
    return [text for output in outputs for text in ([output] if isinstance(output, str) else [turn["content"] for turn in output])]


def place_media(prompt: Text, media: Sequence[Medium], answers: Sequence[str]) -> Text:
    """The prompt as a conversation whose turns hold the media as parts; as it is where there are none. Errors: Broken.

    Parts that name no medium of their own take the row's in their order; where there are such parts, or parts with media, words are words.
    """
    turns = _turns(prompt)
    parts = [part for turn in turns if isinstance(turn["content"], list) for part in turn["content"] if part["type"] != "text"]
    if parts:
        return _filled(turns, parts, media)
    marks = [_marks(turn["content"], ALONE) for turn in turns]
    every = [_marks(turn["content"], MARK) for turn in turns]
    for kind in KINDS:
        count = sum(own == kind for own, _ in media)
        alone = sum(own == kind for turn in marks for own in turn)
        if count == 0 and alone:
            raise Broken(f"{alone} places for media in the prompt and 0 media: <{kind}> stands on a line of its own")
        if count and any(own == kind for answer in answers for own in _marks(answer, ALONE)):
            raise Broken(f"an answer holds <{kind}>, takes media in the prompt alone")
    kinds = {kind for kind, _ in media}
    places = sorted(own for turn in every for own in turn if own in kinds)
    pattern = MARK
    if places and places != sorted(kind for kind, _ in media):
        places = sorted(own for turn in marks for own in turn if own in kinds)
        pattern = ALONE
        if places != sorted(kind for kind, _ in media):
            count = sum(own in kinds for turn in every for own in turn)
            raise Broken(f"{count} places for media in the prompt and {len(media)} media")
    if not media:
        return prompt
    return _spread(turns, media, pattern) if places else _before(turns, media)


def _marks(text: str, pattern: re.Pattern[str]) -> list[str]:
    return pattern.findall(text)


def _filled(turns: Turns, parts: Sequence[Mapping[str, Any]], media: Sequence[Medium]) -> Turns:
    """Turns of parts, those without a medium of their own filled by the row's."""
    empty = [part["type"] for part in parts if part["source"] is None]
    if media and sorted(empty) != sorted(kind for kind, _ in media):
        raise Broken(f"{len(empty)} places for media in the prompt and {len(media)} media")
    if empty and not media:
        raise Broken(f"{len(empty)} places for media in the prompt and 0 media")
    waiting = {kind: [source for own, source in media if own == kind] for kind in KINDS}
    return [
        {
            **turn,
            "content": [_with_source(part, waiting) for part in turn["content"]] if isinstance(turn["content"], list) else turn["content"],
        }
        for turn in turns
    ]


def _with_source(part: dict[str, Any], waiting: dict[str, list[Any]]) -> dict[str, Any]:
    empty = part["type"] != "text" and part["source"] is None
    return {**part, "source": waiting[part["type"]].pop(0)} if empty else part


def _before(turns: Turns, media: Sequence[Medium]) -> Turns:
    """Turns with all media before the first words of the user's."""
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        raise Broken("media, and no turn of the user's that they could stand in")
    own = [{"type": kind, "source": source} for kind, source in media]
    text = {"type": "text", "text": turns[first]["content"]}
    return [{**turn, "content": [*own, text]} if number == first else turn for number, turn in enumerate(turns)]


def _spread(turns: Turns, media: Sequence[Medium], pattern: re.Pattern[str]) -> Turns:
    """Turns with media in the places that their words mark."""
    waiting = {kind: [source for own, source in media if own == kind] for kind in KINDS}
    kinds = "|".join(sorted({kind for kind, _ in media}))
    split = re.compile(pattern.pattern.replace("image|video", kinds))
    whole = []
    for turn in turns:
        pieces, parts = split.split(turn["content"]), list[dict[str, Any]]()
        for text, kind in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            if text.strip():
                parts.append({"type": "text", "text": text.strip("\n") if pattern is ALONE else text})
            if kind:
                parts.append({"type": kind, "source": waiting[kind].pop(0)})
        whole.append({**turn, "content": parts if len(pieces) > 1 else turn["content"]})
    return whole
