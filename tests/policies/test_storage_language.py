"""Frozen weights of language models in 4 bits: what is rounded, that LoRA trains on it as on any model, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.policies.exports import language
from mmalign.policies.inspecting import footprint, footprint_language
from mmalign.policies.language.models import storage
from mmalign.policies.settings import Lora, TextMemory
from mmalign.policies.twins import texts
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

NF4 = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed: pip install 'mmalign[eight_bit]'")


def policy(name: str = "qwen2", **more: Any) -> Any:
    given = {"max_completion": 5, "lora": {"rank": 2}, "storage": "nf4", **more}
    return transformers(tiny_text.model(name), tiny_text.tokenizer(), **given)


@NF4
@pytest.mark.parametrize("name", ["qwen2", "llama"])  # with biases and without
def test_lora_trains_on_the_rounded_model(name: str, tmp_path: Path) -> None:
    stored = policy(name)
    assert stored.stored == 2 * 7
    rounded = tiny_text.model(name)  # the same model, its weights rounded by hand and kept in full
    layers = {key.replace(".base_layer", ""): layer for key, layer in storage.layers_of(stored.model).items()}
    for key, layer in layers.items():
        own = rounded.get_submodule(key).weight
        full = layer.weight.get_original_weight()
        assert (
            0 < float((full - own).abs().max()) <= 0.16 * float(own.abs().max())
        )  # half of the widest gap between quantiles, and the scale
        own.data = full
    plain = transformers(rounded, tiny_text.tokenizer(), max_completion=5, lora={"rank": 2})
    tables = []
    for some in (stored, plain):
        rollout = some.sample(["ab", "cd"], 2, torch.Generator().manual_seed(0))
        steps = some.steps(rollout, torch.arange(4))
        steps.log_probs.sum().backward()
        tables.append((rollout.held.tokens, steps.log_probs.detach(), [p.grad for p in some.parameters().values()]))
    assert torch.equal(tables[0][0], tables[1][0])
    torch.testing.assert_close(tables[0][1:], tables[1][1:], rtol=1e-5, atol=1e-5)
    run = mm.online(
        stored, ["ab", "cd"], {"long": lambda outputs, prompts: torch.tensor([float(len(text)) for text in outputs])}, mm.methods.grpo(),
        steps=2, batch={"prompts": 2, "group": 2}, evaluation={"every": 9, "samples": 1}, optimizer=mm.adamw(rate=0.1),
        run={"folder": str(tmp_path), "trackers": ()},
    )  # fmt: skip
    assert run.summary["preflight_difference"] < 1e-4
    language.save(stored, tmp_path / "export", base=lambda: tiny_text.model(name), prompt="ab")  # compared with the rounded base


def test_it_is_counted_by_hand() -> None:
    def weights(memory: TextMemory) -> int:
        asked = footprint_language.transformers(
            texts.twin("LlamaForCausalLM"), lora=Lora(rank=2), max_prompt=8, max_completion=4, memory=memory
        )
        return sum(part.size for part in asked.measure(footprint.Rows(4, 4, 4)).parts if part.name.startswith("weights"))

    linear = [layer.weight.numel() for layer in storage.layers_of(texts.twin("LlamaForCausalLM")[0].requires_grad_(False)).values()]
    saved = sum(4 * count - count // 2 - count // 64 - 4 * -(-count // (64 * 256)) for count in linear)
    assert linear and weights(TextMemory()) - weights(TextMemory(storage="nf4")) == saved


def test_what_it_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="more is trained than LoRA; takes lora"):
        policy(lora=None)
    with pytest.raises(UserError, match=r"beside policy\.engine"):
        policy(engine={"url": "http://127.0.0.1:9/v1", "model": "base"})
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="needs the package torchao, which is not installed"):
        policy()
