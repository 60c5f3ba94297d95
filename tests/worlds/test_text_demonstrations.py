"""How far a completion is from what its prompt's own sentence goes on to say."""

from __future__ import annotations

import pytest

import mmalign as mm
from mmalign.worlds.text import data


def test_a_demonstration_is_no_way_from_itself_and_all_the_way_from_other_words() -> None:
    line = data.sentences("judge")[0].split()
    prompt, rest = " ".join(line[:3]), line[3:]
    parts = mm.worlds.text_demonstration()([" ".join(rest), "zebra", "", " ".join(reversed(rest))], [prompt] * 4)
    assert parts["difference"].tolist() == pytest.approx([0.0, 1.0, 1.0, 0.0], abs=1e-12)
    plain = mm.worlds.text_plain()([" ".join(rest)], [prompt]).item()
    assert parts["gap"].tolist() == pytest.approx([0.0, plain, plain, 0.0]) and plain > 0


def test_half_the_words_are_half_the_way() -> None:
    line = data.sentences("judge")[0].split()
    rest, prompt = line[3:], " ".join(line[:3])
    difference = mm.worlds.text_demonstration()([f"{rest[0]} zebra"], [prompt])["difference"].item()
    size = sum(rest.count(word) ** 2 for word in set(rest)) ** 0.5
    assert difference == pytest.approx(1 - rest.count(rest[0]) / (2**0.5 * size))


def test_a_prompt_that_begins_no_sentence_has_none() -> None:
    parts = mm.worlds.text_demonstration()(["the value ."], ["zebra zebra zebra"])
    assert parts["difference"].isnan().all() and parts["gap"].isnan().all()
