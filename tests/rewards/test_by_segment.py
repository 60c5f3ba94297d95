from __future__ import annotations

import pytest
import torch

from mmalign.rewards.texts.by_segment import by_segment
from mmalign.types import UserError

TEXT = "A cat sat.  Two dogs ran!\n- no 3.5 end"


@pytest.mark.parametrize(
    ("unit", "wanted"),
    [
        ("sentence", ["A cat sat.", "Two dogs ran!", "- no 3.5 end"]),
        ("line", ["A cat sat.  Two dogs ran!", "- no 3.5 end"]),
        ("word", ["A", "cat", "sat.", "Two", "dogs", "ran!", "-", "no", "3.5", "end"]),
    ],
)
def test_each_part_is_asked_about_by_itself_with_its_prompt_and_columns(unit, wanted):
    calls = []

    def reward(outputs, prompts, *, colour):
        calls.extend(zip(outputs, prompts, colour, strict=True))
        return torch.arange(len(outputs)).float()

    scores = by_segment(reward, unit=unit)([TEXT, "", "x"], ["p", "q", "r"], colour=[1, 2, 3])
    assert calls == [*((part, "p", 1) for part in wanted), ("x", "r", 3)]
    assert [TEXT[start:end] for start, end, _ in scores[0]] == wanted and [score for *_, score in scores[0]] == list(range(len(wanted)))
    assert scores[1] == [] and scores[2] == [(0, 1, float(len(wanted)))]


def test_mistakes():
    with pytest.raises(UserError, match="unit: got 'page'"):
        by_segment(len, unit="page")
    with pytest.raises(UserError, match="returned 1 scores, takes one for each of 2 parts"):
        by_segment(lambda outputs, prompts: [1.0], unit="word")(["a b"], ["p"])
    assert by_segment(lambda outputs, prompts: 1 / 0)(["", " "], ["p", "p"]) == [[], []]
