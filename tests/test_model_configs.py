"""Every config of a real model: no mistakes in it, and complete in itself."""

from __future__ import annotations

import pytest

from mmalign.config import check, load
from mmalign.rooms import resource

FOLDER = resource("configs")
MODELS = (
    "sd15", "sdxl", "sd35_medium", "sd35_large", "flux_dev", "flux_kontext", "qwen_image", "qwen_image_edit", "sana", "z_image", "wan21_1b",
    "wan21_14b", "wan22", "ltx", "cogvideox", "hunyuan_video",
)  # fmt: skip
FILES = sorted(f"{file.parent.name}/{file.stem}" for model in MODELS for file in (FOLDER / model).glob("*.yaml"))


def test_every_model_has_both():
    assert {f"{model}/{method}" for model in MODELS for method in ("flow_grpo", "dpo")} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_no_mistakes(name):
    node = load(name)
    assert check(node) == []
    assert node["run"]["name"] == name.replace("/", "-")


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_where_numbers_come_from(name):
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("\nuse:")]
    assert "https://" in head and ("Values:" in head or "Nobody published" in head)
    assert name in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("/flow_grpo")])
def test_updates_have_as_many_rows_each(name):
    batch = load(name)["batch"]
    assert batch["prompts"] * batch["group"] % batch["updates"] == 0
