"""Folders of models and adapters that were damaged: the whole model, or one line. All of them: ``python scripts/fuzz/models.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mmalign as mm
from mmalign.policies.language.models.loading import load
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.pipelines.calls.calling import load as load_pipeline
from mmalign.policies.settings import Lora
from mmalign.runs import weights
from mmalign.types import UserError
from scripts.fuzz import models


def refused(act: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), str(caught.value)


def test_a_few_damaged_folders() -> None:
    endings, wrong = models.run(30, seed=0)
    assert wrong == [] and endings["refused"] > 10 and endings["loaded"] > 5


def test_what_is_looked_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody compares tensors, one that is left out is a random one; and where JSON is read alone, its errors come through."""
    monkeypatch.setattr("mmalign.policies.language.models.loading.refuse_unlike", lambda *_, **__: None)
    monkeypatch.setattr("mmalign.runs.weights._read_header", lambda text, where: json.loads(text))
    monkeypatch.setattr(models, "OFTEN", ("language", "peft"))
    _, wrong = models.run(90, seed=100)
    assert any("loaded, and other than the whole one" in line for line in wrong)
    assert any("JSONDecodeError" in line for line in wrong)


DAMAGE = {
    "config.json": [b"", b"[]", b'{"model_type": 3}', b'{"model_type": "llama", "hidden_size": "x"}', b"\xff\xfe\x00"],
    "tokenizer.json": [b"{}", b'{"model": null}', b'{"version": "1.0", "model": {"type": "Nope"}}', b'{"added_tokens": [{}]}'],
    "model.safetensors": [b"", b"\0" * 8, b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"{}"],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file, contents in DAMAGE.items() for content in contents])
def test_whatever_a_library_raises_is_a_line(tmp_path: Path, file: str, content: bytes) -> None:
    models.language(tmp_path)
    (tmp_path / file).write_bytes(content)
    with models.quiet():
        refused(lambda: load(str(tmp_path)), f"policy.model: {'' if content == DAMAGE['model.safetensors'][3] else 'got '}")


@pytest.mark.parametrize("end", ["../../x", [1, "a"], 2.5, {"a": 1}])
def test_ends_that_are_no_ids_are_refused(tmp_path: Path, end: Any) -> None:
    models.language(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    with models.quiet():
        refused(lambda: models.load_language(tmp_path), "policy.model: ", "eos_token_id" if end != {"a": 1} else "")


LENGTHS = ["x", "512", [1], {"a": 1}, True]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_tokenizers_length_that_is_no_number_is_refused_before_a_text_is_read(tmp_path: Path, length: Any) -> None:
    for make, act, where, key in (
        (models.language, models.load_language, tmp_path / "language", "policy.model"),
        (models.pipeline, lambda place: load_pipeline(str(place)), tmp_path / "pipeline", "policy.pipeline"),
    ):
        make(where)
        config = next(where.rglob("tokenizer_config.json"))
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": length}))
        with models.quiet():
            refused(lambda act=act, where=where: act(where), f"{key}: ", f"model_max_length {length!r}, takes a number of tokens")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"_class_name": 3}', b'{"_class_name": "Nope"}', b'"x"', b"\xff"])
def test_a_damaged_index_of_a_pipeline_is_a_line(tmp_path: Path, content: bytes) -> None:
    models.pipeline(tmp_path)
    (tmp_path / "model_index.json").write_bytes(content)
    with models.quiet():
        refused(lambda: load_pipeline(str(tmp_path)), "policy.pipeline: ")


HEADERS = {
    b"": "cannot be read",
    b"[1]": "got list, takes a mapping",
    b"\xff\xfe": "cannot be read",
    b'{"lora_alpha": "x"}': "the alpha of base_model.model.q_proj is 'x', takes a number other than 0",
    b"{}": "lora_alpha is missing",
    b'{"lora_alpha": null}': "lora_alpha is missing",
    b'{"lora_alpha": 1, "alpha_pattern": {"q_proj": []}}': "the alpha of base_model.model.q_proj is [], takes a number",
    b'{"lora_alpha": NaN}': "the alpha of base_model.model.q_proj is nan, takes a number",
    b'{"lora_alpha": 0}': "the alpha of base_model.model.q_proj is 0, takes a number other than 0",
    b'{"lora_alpha": true}': "the alpha of base_model.model.q_proj is True, takes a number",
    b'{"lora_alpha": 8, "alpha_pattern": {"(": 3}}': "alpha_pattern: got {'(': 3}, takes a mapping of expressions to numbers",
    b'{"lora_alpha": 8, "alpha_pattern": [3]}': "alpha_pattern: got [3], takes a mapping of expressions to numbers",
}


@pytest.mark.parametrize("content", HEADERS)
def test_an_adapter_says_its_alpha_or_is_refused(tmp_path: Path, content: bytes) -> None:
    models.peft_adapter(tmp_path)
    (tmp_path / weights.PEFT).write_bytes(content)
    refused(lambda: weights.read(tmp_path, "policy.lora.from"), f"policy.lora.from: {tmp_path}", HEADERS[content])


def test_weights_of_peft_without_their_alpha_are_refused(tmp_path: Path) -> None:
    """A scale of 1 in their place would be another adapter; a file by its own path has its alpha beside it."""
    models.peft_adapter(tmp_path)
    file = tmp_path / weights.PEFT_WEIGHTS
    assert weights.read(file, "from").scales == weights.read(tmp_path, "from").scales == {
        "base_model.model.q_proj": 4.0, "base_model.model.v_proj": pytest.approx(8 / 3),
    }  # fmt: skip
    (tmp_path / weights.PEFT).unlink()
    for place in (tmp_path, file):
        refused(lambda place=place: weights.read(place, "from"), "holds adapter_model.safetensors without adapter_config.json")


@pytest.mark.parametrize("shape", [(0,), (0, 4), (), (2, 3)])
def test_an_adapter_without_a_rank_or_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    models.peft_adapter(tmp_path)
    held = load_file(tmp_path / weights.PEFT_WEIGHTS)
    held["base_model.model.q_proj.lora_A.weight"] = torch.zeros(shape)
    save_file(held, tmp_path / weights.PEFT_WEIGHTS)
    module = nn.ModuleDict({"q_proj": nn.Linear(4, 6), "v_proj": nn.Linear(6, 4)})
    refused(lambda: ParameterSets(module, lora=Lora(from_=str(tmp_path))), "lora.from", "q_proj")


@pytest.mark.parametrize("other", [[], ["a", "b"], torch.zeros(2), 3, nn.Linear(2, 2), (nn.Linear(2, 2), None), (1, 2, 3), ()])
def test_what_is_no_model_is_a_line(other: Any) -> None:
    """As a node under ``model`` or ``pipeline`` gives it that makes something else."""
    refused(lambda: mm.policies.transformers(other), "policy.model: got a ", ", takes a model of transformers and what reads for it")
    refused(lambda: mm.policies.diffusers(other), "policy.pipeline: got a ", ", takes a pipeline of diffusers")
    refused(lambda: mm.policies.transformers(other, dtype="bfloat16"), "policy.model: got a ", "")
