"""Twins of language models: the class that is asked for, bytes that come back, one line for what is unknown."""

from __future__ import annotations

import json

import pytest

from mmalign.policies.twins.texts import small, twin
from mmalign.types import UserError


@pytest.mark.parametrize("kind", ["Qwen2ForCausalLM", "LlamaForCausalLM"])
def test_a_twin_is_of_its_class_and_reads_bytes(kind):
    (model, words), (again, _) = twin(kind), twin(kind)
    assert type(model).__name__ == kind and sum(p.numel() for p in model.parameters()) < 50_000
    assert all(bool((a == b).all()) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    text = words.apply_chat_template([{"role": "user", "content": "Größe? 大"}], tokenize=False, add_generation_prompt=True)
    assert "<|im_start|>user\nGröße? 大<|im_end|>" in text and words.decode(words(text)["input_ids"]) == text


def test_the_class_is_known_from_the_name_the_folder_or_what_was_said(tmp_path):
    node = {"use": "transformers", "model": "Qwen/Qwen2.5-0.5B-Instruct", "dtype": "bfloat16", "max_completion": 512, "lora": {"rank": 64}}
    made, printed = small(node)
    assert made["model"] == {"use": "policies.twins.texts.twin", "kind": "Qwen2ForCausalLM"} and "dtype" not in made
    assert (made["max_completion"], made["lora"]["rank"]) == (16, 4) and "policy.dtype is left out" in printed
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert small({**node, "model": str(tmp_path)})[0]["model"]["kind"] == "Qwen3ForCausalLM"
    assert small({**node, "model": "me/mine"}, kind="LlamaForCausalLM")[0]["model"]["kind"] == "LlamaForCausalLM"
    assert small({**node, "model": {"use": "text"}})[0]["model"] == {"use": "text"}
    with pytest.raises(UserError, match=r"policy\.model: the class of 'me/mine' is not known here; takes --kind"):
        small({**node, "model": "me/mine"})
    with pytest.raises(UserError, match=r"policy\.model: got 'NoSuchForCausalLM', which transformers"):
        twin("NoSuchForCausalLM")
