"""How the data sets people have say which answer about a picture is better: a row -> pairs whose prompts hold their media.

Rows become a prompt, two answers and a list of media, and then what ``text_schemas.preference`` makes of a pair of texts; where a text
holds ``<image>`` or ``<video>``, a medium stands in its place, and where it holds none, all stand before the first words of the user's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmalign.data import text_schemas
from mmalign.data.tables import Row
from mmalign.media import Broken
from mmalign.records import Pair
from mmalign.types import UserError

COLUMNS = (
    "prompt", "chosen", "rejected", "strength", "score_chosen", "score_rejected", "id", "annotator", "image", "images", "video", "videos",
)  # fmt: skip
MARK = re.compile(r"\s*<(image|video)>\s*")
Medium = tuple[str, Any]  # image or video, and its path or its bytes
Schema = Callable[[Row, str], Iterator[Pair]]


def rlhf_v(row: Row, name: str) -> Iterator[Pair]:
    """RLHF-V: ``image``, and ``text``, an object with ``question, chosen, rejected``, mostly as a string of JSON; ``idx`` is the id."""
    said = row.get("text")
    if isinstance(said, (str, bytes)):
        try:
            said = json.loads(said)
        except ValueError as error:
            raise Broken(f"text: not JSON: {error}") from error
    if not isinstance(said, Mapping):
        raise Broken("text: takes an object with question, chosen and rejected")
    yield from rlaif_v({**row, **said}, name)


def rlaif_v(row: Row, name: str) -> Iterator[Pair]:
    """RLAIF-V: ``image, question, chosen, rejected``; ``idx`` is the id."""
    told = {"prompt": row.get("question"), "id": row.get("id", row.get("idx"))}
    yield from preference({**row, **told}, name)


def povid(row: Row, name: str) -> Iterator[Pair]:
    """POVID, and what else is written in LLaVA's way: ``image, conversations`` (the better ones) and ``rejected_conversations``."""
    told = {"prompt": None, "chosen": row.get("conversations"), "rejected": row.get("rejected_conversations")}
    yield from preference({**row, **told}, name)


def preference(row: Row, name: str) -> Iterator[Pair]:
    """``prompt, chosen, rejected`` as strings or conversations, and ``image``, ``images``, ``video`` or ``videos``: TRL's, MM-RLHF's.

    Contents may be parts, ``{type: text, text: ...}`` and ``{type: image}``, which take the row's media in their order, or name their own
    (``path``, or the medium under its kind). A row without media is one of texts.
    """
    media = [("image", source) for source in _listed(row, "image")] + [("video", source) for source in _listed(row, "video")]
    media = media or _inside(row.get("prompt") or row.get("chosen"))
    flat = {key: _flat(row.get(key), key) for key in ("prompt", "chosen", "rejected")}
    for pair in text_schemas.preference({**row, **flat}, name):
        if any(MARK.search(text) for output in (pair.first, pair.second) for text in _texts(output)):
            raise Broken("an answer holds <image> or <video>, takes media in the prompt alone")
        yield pair._replace(prompt=_shown(pair.prompt, media))


def prompt(row: Row) -> list[dict[str, Any]]:
    """The prompt of a row, ``prompt`` or ``question``, with its media, as a conversation that asks for an answer. Raises Broken."""
    media = [("image", source) for source in _listed(row, "image")] + [("video", source) for source in _listed(row, "video")]
    asked = row.get("prompt") if row.get("prompt") is not None else row.get("question")
    said = text_schemas.said({"prompt": _flat(asked, "prompt")}, "prompt")
    turns = _shown([{"role": "user", "content": said}] if isinstance(said, str) else said, media or _inside(asked))
    if turns[-1]["role"] == "assistant":
        raise Broken("prompt: ends with the assistant's turn")
    found: list[dict[str, Any]] = turns
    return found


def guess(row: Row) -> Schema:
    """The schema that a row looks like. Raises Broken with its columns, where it looks like none."""
    has = row.keys()
    if "rejected_conversations" in has:
        return povid
    if {"image", "text"} <= has and "chosen" not in has:
        return rlhf_v
    if {"question", "chosen", "rejected"} <= has and row.get("prompt") is None:
        return rlaif_v
    if {"chosen", "rejected"} <= has:
        return preference
    raise Broken(
        f"columns {', '.join(sorted(map(str, row)))} look like no known schema (RLHF-V, RLAIF-V, MM-RLHF, POVID, TRL's with images); takes "
        "columns: {prompt: ..., chosen: ..., rejected: ..., image: ...}"
    )


def renamed(names: Mapping[str, str], schema: Schema) -> Schema:
    """A schema for rows whose columns are called otherwise. names: what we call them -> what they are called. Errors: UserError."""
    if strange := sorted(set(names) - set(COLUMNS)):
        raise UserError(f"records.columns.{strange[0]}: unknown; takes {', '.join(COLUMNS)}")
    return lambda row, name: schema({**row, **{own: row[theirs] for own, theirs in names.items() if theirs in row}}, name)


def _listed(row: Row, kind: str) -> list[Any]:
    """Media of a kind: one under its name, several under its plural."""
    several, one = row.get(f"{kind}s"), row.get(kind)
    if several is not None and not isinstance(several, (list, tuple)):
        raise Broken(f"{kind}s: got {type(several).__name__}, takes a list")
    if several:
        return list(several)
    return [] if one is None or one == "" else list(one) if isinstance(one, (list, tuple)) else [one]


def _flat(said: Any, key: str) -> Any:
    """A text, or a conversation whose parts are put together to texts with marks."""
    if not isinstance(said, (list, tuple)):
        return said
    turns = []
    for turn in said:
        content = turn.get("content", turn.get("value")) if isinstance(turn, Mapping) else None
        turns.append({**turn, "content": "".join(_part(part, key) for part in content)} if isinstance(content, (list, tuple)) else turn)
    return turns


def _part(part: Any, key: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return str(part.get("text") or "")
    if kind in ("image", "video"):
        return f"<{kind}>"
    raise Broken(f"{key}: got a part of type {kind!r}, takes text, image or video")


def _inside(said: Any) -> list[Medium]:
    """Media that the parts of a conversation name themselves."""
    contents = [turn.get("content") for turn in said if isinstance(turn, Mapping)] if isinstance(said, (list, tuple)) else []
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content if isinstance(part, Mapping)]
    found = [(str(part["type"]), part.get("path", part.get(str(part["type"])))) for part in parts if part.get("type") in ("image", "video")]
    return [(kind, source) for kind, source in found if source is not None]


def _texts(said: Any) -> list[str]:
    return [said] if isinstance(said, str) else [turn["content"] for turn in said]


def _shown(prompt: Any, media: Sequence[Medium]) -> Any:
    """The prompt as a conversation whose user's turns hold the media as parts; as it is where there are none."""
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    marks = [mark for turn in turns for mark in MARK.findall(turn["content"])]
    if not media and not marks:
        return prompt
    if marks and sorted(marks) != sorted(kind for kind, _ in media):
        raise Broken(f"{len(marks)} places for media in the prompt and {len(media)} media")
    waiting = {kind: [source for own, source in media if own == kind] for kind in ("image", "video")}
    found = []
    for turn in turns:
        parts: list[dict[str, Any]] = []
        if not marks and turn["role"] == "user":
            parts, waiting = [_medium(kind, source) for kind, source in media if waiting[kind]], {"image": [], "video": []}
        pieces = MARK.split(turn["content"])
        for text, kind in zip(pieces[::2], [*pieces[1::2], None], strict=True):
            parts += [{"type": "text", "text": text}] if text.strip() else []
            parts += [_medium(kind, waiting[kind].pop(0))] if kind else []
        found.append({**turn, "content": parts if any(part["type"] != "text" for part in parts) else turn["content"]})
    return found


def _medium(kind: str, source: Any) -> dict[str, Any]:
    return {"type": kind, "path": source}
