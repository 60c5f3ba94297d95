"""Prompts that do not fit, and what each pixel counts."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import mmalign as mm
from mmalign.types import UserError

VOCABULARY = {"objects": {"fox": ["dog"]}, "attributes": {"red": ["blue"]}}


def test_by_rule_one_thing_changes():
    edit = mm.data.edited(vocabulary=VOCABULARY)
    several = {edit(["a red fox left of two trees"] * (1 + number))[0] for number in range(30)}
    assert several <= {
        "a blue fox left of two trees", "a red dog left of two trees", "a red fox right of two trees",
        *(f"a red fox left of {count} trees" for count in ("one", "three", "four")),
    }  # fmt: skip
    assert len(several) >= 4 and edit(["a red fox"]) == edit(["a red fox"])


def test_ways_are_chosen():
    edit = mm.data.edited(vocabulary=VOCABULARY, ways=["content"])
    assert {edit(["a red fox left of two trees"] * (1 + number))[0] for number in range(9)} == {"a red dog left of two trees"}
    with pytest.raises(UserError, match=r"edited\.ways: got \['colour'\], takes list of 'content'"):
        mm.data.edited(vocabulary=VOCABULARY, ways=["colour"])
    with pytest.raises(UserError, match=r"edits\.ways: got none"):
        mm.data.edited(vocabulary=VOCABULARY, ways=[])


def test_written_edits_come_first(tmp_path):
    file = tmp_path / "edits.jsonl"
    file.write_text(json.dumps({"prompt": "a red fox", "edited": ["a red cat", "a green fox"]}) + "\n")
    edit = mm.data.edited(str(file))
    assert {edit(["a red fox"] * (1 + number))[0] for number in range(20)} == {"a red cat", "a green fox"}
    with pytest.raises(UserError, match="nothing in 'a blue bird' can be edited"):
        edit(["a blue bird"])
    assert mm.data.edited(str(file), vocabulary={"attributes": {"blue": ["red"]}})(["a blue bird"]) == ["a red bird"]


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="neither path nor vocabulary"):
        mm.data.edited()
    with pytest.raises(UserError, match=r"edits\.path: no such file"):
        mm.data.edited(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"edits\.vocabulary\.objects: takes"):
        mm.data.edited(vocabulary={"objects": {"fox": []}})
    file = tmp_path / "edits.jsonl"
    file.write_text('{"prompt": "a", "edited": []}\n')
    with pytest.raises(UserError, match="line 1: takes"):
        mm.data.edited(str(file))


def test_a_mask_is_of_the_size_of_the_outputs(tmp_path):
    left = Image.new("L", (4, 4))
    left.paste(255, (0, 0, 2, 4))
    left.save(tmp_path / "left.png")
    (tmp_path / "masks.jsonl").write_text('{"prompt": "a fox", "mask": "left.png"}\n')
    mask = mm.data.masked(str(tmp_path / "masks.jsonl"), outside=0.25)
    counts = mask(torch.zeros(2, 3, 4, 4), ["a fox", "a fox"])
    assert counts.shape == (2, 1, 4, 4) and counts[0, 0, 0].tolist() == [1.0, 1.0, 0.25, 0.25]
    assert mask(torch.zeros(1, 5, 3, 4, 4), ["a fox"]).shape == (1, 5, 1, 4, 4)
    with pytest.raises(UserError, match="has none for 'a dog'"):
        mask(torch.zeros(1, 3, 4, 4), ["a dog"])


def test_frames_of_a_video():
    counts = mm.data.frames(1, 2)(torch.zeros(1, 4, 3, 2, 2), ["a fox"])
    assert counts[0, :, 0, 0, 0].tolist() == [0.0, 1.0, 1.0, 0.0]
    with pytest.raises(UserError, match="takes videos of more than 1 frames"):
        mm.data.frames(1)(torch.zeros(1, 3, 2, 2), ["a fox"])
    with pytest.raises(UserError, match="got 0, takes 1 or more"):
        mm.data.frames(1, 0)
