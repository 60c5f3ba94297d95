"""Rubrics that are written from pairs: which of them are kept, and what the file is then good for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import UserError

PAIRS = [
    Pair("one", "so it is", "no", 1.0, "a"), Pair("two", "no", "it is so", 0.0, "b"), Pair("three", "no", "so be it", 0.9, "c"),
    Pair("four", "so", "so so", 0.5, "d"), Pair("five", "so", "no", 1.0, "e"), Pair("six", "so", "?", 1.0, "f"),
]  # fmt: skip


class Writes:
    """Asks whether a word stands in an answer: the better one's first, whatever the order says of it. Of "five" it has nothing to say."""

    kind = "token"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> list[str]:
        self.asked += prompts
        return [" \n" if prompt.startswith("five") else "1. Is there a so?\n\n- Is it short?\n* Is it kind?" for prompt in prompts]


def judge(outputs: list[str], prompts: list[str], *, rubric: list[str]) -> Tensor:
    assert {*rubric} == {"Is there a so?\nIs it short?"}
    return torch.tensor([float("nan") if text == "?" else float("so" in text) for text in outputs], dtype=torch.float64)


def test_a_rubric_is_kept_where_its_judge_agrees(tmp_path: Path) -> None:
    policy, out = Writes(), tmp_path / "rubrics.jsonl"
    counts = mm.commands.make_rubrics(
        policy, PAIRS, {"judge": judge}, out=str(out), count=6, order="{prompt}: {chosen} | {rejected}", most=2, records_at_once=2
    )
    assert counts == {"rubrics": 2, "records": 6, "disagree": 1, "missing": 1, "empty": 1, "ties": 1}
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert {name: (row["chosen"], row["rejected"]) for name, row in rows.items()} == {"a": ("so it is", "no"), "b": ("it is so", "no")}
    assert {"one: so it is | no", "two: it is so | no", "three: no | so be it"} <= {*policy.asked}
    prompts = mm.data.prompts(str(out))
    assert {prompt.columns["rubric"] for prompt in prompts} == {"Is there a so?\nIs it short?"}  # type: ignore[attr-defined]
    pair = next(mm.data.texts(str(out)).stream(seed=0))
    assert pair.scores == (1.0, 0.0)


def test_what_cannot_be_filled_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"order: got words without \{rejected\}"):
        mm.commands.make_rubrics(Writes(), PAIRS, {"judge": judge}, out=str(tmp_path / "a"), count=1, order="{prompt} {chosen}")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="rewards: got none, takes a judge that reads the column 'rubric'"):
        mm.commands.make_rubrics(Writes(), PAIRS, {}, out=str(tmp_path / "a"), count=1)  # type: ignore[arg-type]
