"""Every config of a real language model: no mistakes in it, a source for its numbers, prompts with answers."""

from __future__ import annotations

import pytest

from mmalign.config import build_part, check, load
from mmalign.rooms import resource
from mmalign.types import columns_of, contents

FOLDER = resource("configs")
FILES = [f"{model}/{method}" for model in ("qwen25_0b", "llama32_1b") for method in ("dpo", "grpo")]


@pytest.mark.parametrize("name", FILES)
def test_no_mistakes(name):
    node = load(name)
    assert check(node) == []
    assert node["run"]["name"] == name.replace("/", "-")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert "Values: " in text and "https://" in text[: text.index("\nuse:")]
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/grpo")])
def test_every_prompt_has_an_answer(name):
    node = load(name)
    assert node["batch"]["prompts"] * node["batch"]["group"] % node["batch"].get("updates", 1) == 0
    given = build_part(node, "prompts")
    prompts, columns = contents(given), columns_of(given)
    scores = build_part(node, "rewards")["answer"]([r"So it is \boxed{-1}."] * len(prompts), prompts, **columns)
    assert scores.tolist() == [0] * len(prompts)
    assert build_part(node["evaluation"], "judges")["boxed"]([r"So it is \boxed{-1}.", "-1"], ["", ""]).tolist() == [1, 0]
