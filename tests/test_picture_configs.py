"""Every config of a real vision-language model: no mistakes in it, a source for its numbers, questions with answers."""

from __future__ import annotations

import pytest

from mmalign.config import build_part, check, load
from mmalign.rooms import resource
from mmalign.types import columns_of, contents

FOLDER = resource("configs")
PAIRS = ("qwen25_vl_7b/pairs_ranked", "qwen25_vl_7b/pairs_hidden")  # not runs, but what runs learn from
MODELS = ("llava15_7b", "llava_onevision_7b", "qwen25_vl_7b")
FILES = sorted(f"{file.parent.name}/{file.stem}" for model in MODELS for file in (FOLDER / model).glob("*.yaml"))


def test_there_are_those_that_were_promised():
    assert {f"{model}/{method}" for model in ("llava15_7b", "qwen25_vl_7b") for method in ("dpo", "dense_dpo", "mdpo")} <= set(FILES)
    assert {"qwen25_vl_7b/grpo", "llava_onevision_7b/grpo", "llava_onevision_7b/dpo", "llava15_7b/opa_dpo"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_mistakes(name):
    node = load(name)
    assert check(node) == []
    assert name in PAIRS or node["run"]["name"] == name.replace("/", "-")
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nuse:")]
    assert "https://" in head and ("Values: " in head or "Nobody published" in head)
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/grpo")])
def test_every_question_has_its_answer(name):
    node = load(name)
    batch = node["batch"]
    assert batch["prompts"] * batch["group"] % batch.get("updates", 1) == 0
    given, reward = build_part(node, "prompts"), build_part(node, "rewards")["answer"]
    prompts, columns = contents(given), columns_of(given)
    assert len(prompts) >= batch["prompts"] and all(prompt[0]["content"][0]["type"] == "image" for prompt in prompts)
    right = sum(reward([f"There are {count}."] * len(prompts), prompts, **columns) for count in range(1, 5))
    assert right.tolist() == [1.0] * len(prompts)
