"""What a conversation says, shows and is known by, whatever its parts name their media with."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmalign.conversations import has_media, known_by, media_of, question, without, without_media, words_and_images
from mmalign.types import UserError

RED = Image.new("RGB", (2, 2), "red")
SOURCES = {
    "path": ({"path": "a.png"}, "a.png"),
    "kind": ({"image": "a.png"}, "a.png"),
    "parts of parquet": ({"path": None, "image": "a.png", "text": None}, "a.png"),
    "address": ({"url": "https://example.org/a.png"}, "https://example.org/a.png"),
    "bytes": ({"bytes": b"abc"}, b"abc"),
    "PIL": ({"image": RED}, RED),
}


def talk(part):
    return [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [{"type": "image", **part}, {"type": "text", "text": "What?"}]},
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_media_by_whatever_a_part_calls_them(name):
    part, source = SOURCES[name]
    assert words_and_images(talk(part)) == ("What?", [source])
    assert [medium.source for medium in media_of(talk(part))] == [source]
    assert question(talk(part)) == "What?" and has_media(talk(part))
    assert not has_media(without_media(talk(part))) and not has_media(without(talk(part), {0}))


def test_prompts_are_told_apart_by_what_their_media_hold():
    blue = Image.new("RGB", (2, 2), "blue")
    held = [
        {"bytes": b"abc"},
        {"bytes": b"abd"},
        {"image": RED},
        {"image": blue},
        {"image": torch.zeros(3, 2, 2)},
        {"image": torch.ones(3, 2, 2)},
    ]
    names = [known_by(talk(part)) for part in [*held, {"path": "a.png"}, {"image": "b.png"}, {"url": "https://example.org/a.png"}]]
    assert len(set(names)) == len(names)
    assert known_by(talk({"path": None, "image": "a.png"})) == known_by(talk({"path": "a.png"})) == "<image a.png> What?"
    assert known_by(" What? ") == "What?" and known_by(talk({"bytes": b"abc"})) == names[0]


def test_parts_without_a_medium_or_with_two_are_refused():
    for part, line in (({}, "with 0 sources"), ({"path": "a", "image": "b"}, "with 2 sources")):
        with pytest.raises(UserError, match=line):
            media_of(talk(part))


def test_turns_without_words():
    assert words_and_images([{"role": "user", "content": None}]) == ("", []) and known_by([]) == "" and not has_media("words")
