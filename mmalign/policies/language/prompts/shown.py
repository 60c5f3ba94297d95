"""Pictures that an environment shows in the middle of a row: read apart, and never written anew.

What was sampled behind a prompt has seen the pictures before it as they were read then. So a reply with pictures goes through the processor
by itself, its tokens and pixels stand behind those before it, and ``Vision`` refuses a processor that would read them otherwise together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmalign.policies.language.prompts.encoded_prompts import Prompt

Shown = tuple[tuple[int, Prompt], ...]
"""Of a row: behind how many of its completion's tokens a reply with pictures begins, and the reply as it was read."""


def conversation(prompt: Prompt, ids: Sequence[int], shown: Shown) -> Prompt:
    """A row as one prompt: all of its tokens and media. ids: behind the prompt, those of the replies among them."""
    replies, start, whole = [reply for _, reply in shown], len(prompt), prompt.followed(ids)
    types = {}
    for name in dict.fromkeys(name for part in (prompt, *replies) for name in part.types):
        values = list(whole.types.get(name, (0,) * len(whole)))
        for place, reply in shown:
            values[start + place : start + place + len(reply)] = reply.types.get(name, (0,) * len(reply))
        types[name] = tuple(values)
    later = [(start + place + first, start + place + last) for place, reply in shown for first, last in reply.spans]
    return replace(
        whole,
        media=(*prompt.media, *(medium for reply in replies for medium in reply.media)),
        spans=(*prompt.spans, *later),
        types=types,
        digest="",
        parts=(prompt, *replies),
    )


def before(shown: Shown, end: int) -> Shown:
    """Those that are shown whole in the first ``end`` tokens."""
    return tuple((place, reply) for place, reply in shown if place + len(reply) <= end)


def whole_until(shown: Shown, end: int) -> int:
    """Where to cut a completion at ``end`` tokens or before, so that no reply with pictures is cut."""
    return min([end, *(place for place, reply in shown if place < end < place + len(reply))])


def seen(shown: Shown) -> list[tuple[int, Any]]:
    """Of each picture, behind how many tokens it begins, and what it is told apart by."""
    return [(place + span[0], medium.key()) for place, reply in shown for span, medium in zip(reply.spans, reply.media, strict=True)]
