"""Prompts that a language model edits."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

import mmalign as mm
from mmalign.commands.make_edits import make_edits
from mmalign.types import UserError


class Model:
    """Answers with the last words of what it is told, another colour in them; it does not answer to ``spatial``."""

    def sample(self, prompts, group_size, rng):
        answers = [prompt.split("\n\n")[-1].replace("red", "blue") if "where things are" not in prompt else " " for prompt in prompts]
        return SimpleNamespace(outputs=answers)


def test_what_differs_is_written(tmp_path):
    out = tmp_path / "edits.jsonl"
    counts = make_edits(Model(), ["a red fox", "a dog"], out=str(out), ways=("attribute", "spatial"), prompts_at_once=1)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"prompt": "a red fox", "edited": ["a blue fox"]}]
    assert counts == {"prompts": 1, "edited": 1, "left_out": 3}
    assert mm.data.edited(str(out))(["a red fox"]) == ["a blue fox"]


def test_mistakes(tmp_path):
    out = tmp_path / "edits.jsonl"
    with pytest.raises(UserError, match="ways: got 'colour'"):
        make_edits(Model(), ["a"], out=str(out), ways=("colour",))
    with pytest.raises(UserError, match=r"order: takes a text with \{change\} and \{prompt\}"):
        make_edits(Model(), ["a"], out=str(out), order="{prompt}")
    images = SimpleNamespace(sample=lambda prompts, count, rng: SimpleNamespace(outputs=torch.zeros(len(prompts), 1, 2, 2)))
    with pytest.raises(UserError, match="does not answer in words"):
        make_edits(images, ["a"], out=str(out))
    out.write_text("")
    with pytest.raises(UserError, match="is there already"):
        make_edits(Model(), ["a"], out=str(out))
