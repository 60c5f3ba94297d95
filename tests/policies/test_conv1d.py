"""LoRA in layers of transformers' Conv1D, of which GPT-2 is made: ``[in, out]`` in the model, A and B as everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmalign.policies.adapters import lora_layers, lora_targets
from mmalign.policies.exports import language
from mmalign.policies.settings import Lora
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

pytestmark = pytest.mark.filterwarnings("error:fan_in_fan_out")  # peft says it where it is told of the wrong layers
IDS = torch.tensor([[5, 9, 11, 7]])


def policy_of(lora: Lora, seed: int = 1) -> Any:
    policy = transformers(tiny_text.model("gpt2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=9, lora=lora)
    shake(policy, seed)
    return policy


def shake(policy: Any, seed: int) -> None:
    with torch.no_grad():
        for number, p in enumerate(policy.parameters().values()):
            p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + number)))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(logits(one), logits(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "targets", "layers"),
    [
        ("gpt2", None, {"attn.c_attn", "attn.c_proj"}),
        ("gpt2", "all-linear", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("gpt2", ["mlp.c_proj"], {"mlp.c_proj"}),
        ("gpt_neox", None, {"attention.query_key_value", "attention.dense"}),
        ("bloom", None, {"self_attention.query_key_value", "self_attention.dense"}),
        ("phi3", None, {"self_attn.qkv_proj", "self_attn.o_proj"}),
    ],
)
def test_the_projections_of_attention_are_found_under_each_of_their_names(name: str, targets: Any, layers: set[str]) -> None:
    assert {".".join(layer.split(".")[-2:]) for layer in lora_targets(tiny_text.model(name), targets, "lora.targets")} == layers


def test_an_adapter_is_read_by_peft_and_as_bare_tensors(tmp_path: Path) -> None:
    policy = policy_of(Lora(rank=2, alpha=8.0, targets="all-linear"))
    (form,) = language.save(policy, tmp_path / "out", base=lambda: tiny_text.model("gpt2"), prompt="ab", name="some/gpt2")
    same(form.load(tmp_path / "out", tiny_text.model("gpt2")).eval(), policy.model)
    assert float((logits(policy.model) - logits(tiny_text.model("gpt2"))).abs().max()) > 0.05
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    stored, base = load_file(tmp_path / "out" / "adapter_model.safetensors"), tiny_text.model("gpt2")
    for name in lora_layers(policy.model):
        up, down = (stored[f"base_model.model.{name}.{half}.weight"] for half in ("lora_B", "lora_A"))
        base.get_submodule(name).weight.data += (up @ down).T
    same(base, policy.model)


def test_an_adapter_starts_as_a_stored_one(tmp_path: Path) -> None:
    policy = policy_of(Lora(rank=2, alpha=8.0))
    language.save(policy, tmp_path / "out", base=lambda: tiny_text.model("gpt2"), prompt="ab")
    again = transformers(tiny_text.model("gpt2"), tiny_text.tokenizer(), max_completion=9, lora=Lora(from_=str(tmp_path / "out")))
    same(again.model, policy.model)


def test_a_soup_is_one_of_effective_weights() -> None:
    policy = policy_of(Lora(rank=2, alpha=8.0))
    name = "transformer.h.1.attn.c_attn"
    deltas = []
    for seed in (1, 2):
        shake(policy, seed)
        policy.sets.keep(f"set{seed}")
        deltas.append(lora_layers(policy.model)[name].get_delta_weight("default").detach().double())
    assert deltas[0].shape == (16, 48)
    policy.sets.mix("soup", {"set1": 0.25, "set2": 0.75})
    layer, eye = policy.model.get_submodule(name), torch.eye(16)
    with torch.no_grad(), policy.using("soup"):
        mixed = layer(eye)
    with torch.no_grad(), policy.using("ref"):
        base = layer(eye)
    torch.testing.assert_close((mixed - base).double(), 0.25 * deltas[0] + 0.75 * deltas[1], atol=1e-5, rtol=1e-5)


def test_a_whole_model_has_its_adapter_added_in() -> None:
    policy = policy_of(Lora(rank=2, alpha=8.0))
    fresh = tiny_text.model("gpt2")
    fresh.load_state_dict(language.merged(policy.model))
    same(fresh, policy.model)


def test_a_twin_is_made_and_looked_at(mmalign: Any) -> None:
    inspected = mmalign("inspect", "GPT2LMHeadModel")
    assert inspected.code == 0, inspected.err
    assert "reaches 4 of 4 LoRA layers" in inspected.out
