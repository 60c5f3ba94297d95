"""Models in GGUF files: where they are, what they weigh, and that nothing tells them from others afterwards."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import gguf as library
import pytest
import torch
from transformers import AutoModelForCausalLM

import mmalign as mm
from mmalign.policies.inspecting import weightless
from mmalign.policies.inspecting.language import is_language, language_inspection, language_model
from mmalign.policies.language.models import gguf
from mmalign.policies.language.models.loading import load
from mmalign.policies.twins import texts
from mmalign.types import UserError
from tests.helpers import tiny_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_weights_are_those_of_the_file_and_the_model_is_a_plain_one(file, tmp_path):
    model, words = load(str(file))
    tensors = {tensor.name: library.dequantize(tensor.data, tensor.tensor_type) for tensor in library.GGUFReader(str(file)).tensors}
    assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(tensors["token_embd.weight"]))
    down = model.get_submodule("model.layers.1.mlp.down_proj")
    assert type(down) is torch.nn.Linear and torch.equal(down.weight, torch.from_numpy(tensors["blk.1.ffn_down.weight"]))
    assert words.convert_ids_to_tokens(words("a\n").input_ids) == ["a", "Ċ"] and words.eos_token == "<|im_end|>"
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([words("hello").input_ids])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_dtype_is_kept_and_its_template_is_the_files(file):
    policy = mm.policies.transformers({"gguf": str(file)}, dtype="bfloat16", max_completion=4)
    assert policy.model.dtype == torch.bfloat16
    written = policy.chat.tokenizer.decode(policy.chat.prompt("hi").ids)
    assert written == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_where_a_file_may_be(file, tmp_path, monkeypatch):
    assert gguf.place_of(str(file)) == gguf.place_of({"gguf": str(file.parent)}) == gguf.Place(str(file.parent), "tiny.gguf")
    assert gguf.is_gguf(str(file.parent)) and gguf.place_of(str(file.parent)).file == "tiny.gguf"
    assert gguf.place_of("org/name/sub/x.gguf") == gguf.Place("org/name", "sub/x.gguf")
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('is not imported')\n")
    (tmp_path / "a_package" / "x.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path / "a_package")
    assert gguf.place_of("a_package/x.gguf") == gguf.Place(str(tmp_path / "a_package"), "x.gguf", "a_package")
    (tmp_path / "a_package" / "config.json").write_text("{}")
    assert not any(gguf.is_gguf(other) for other in (str(tmp_path / "a_package"), "org/name", {"use": "text"}, None))


def test_what_is_no_such_file_is_a_line(file, tmp_path, monkeypatch):
    (tmp_path / "b.gguf").write_bytes(b"PK\x03\x04")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for model, line in {
        "gone.gguf": "policy.model: got 'gone.gguf', takes a GGUF file, PACKAGE/FILE.gguf of an installed package, or ORGANISATION/NAME",
        "no_such_package/x.gguf": "policy.model: got 'no_such_package/x.gguf', takes a GGUF file",
        "b.gguf": "policy.model: b.gguf is no GGUF file: it begins with b'PK",
        "m-00001-of-00003.gguf": "policy.model: m-00001-of-00003.gguf is a part of a model, takes a whole one: llama-gguf-split --merge",
        ".": "policy.model: . holds 2 GGUF files (a.gguf, b.gguf), takes the path of one, a.gguf",
    }.items():
        with pytest.raises(UserError) as error:
            load(model)
        assert str(error.value).startswith(line) and "\n" not in str(error.value)
    for value, line in {"empty": "empty holds 0 GGUF files, takes the path of one", 3: "got 3, takes the path of a GGUF file"}.items():
        with pytest.raises(UserError, match=line):
            load({"gguf": value})
    with pytest.raises(UserError, match=r"takes a folder, a hub id, or \{gguf: FILE\}"):
        load({"guf": "x"})
    found = importlib.util.find_spec
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(UserError, match=r"tiny\.gguf needs the package gguf, which is not installed: pip install 'mmalign\[chat\]'"):
        load(str(file))


def test_an_architecture_that_transformers_does_not_read_is_a_line(tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf", architecture="clip")
    with pytest.raises(UserError) as error:
        load(str(tmp_path / "x.gguf"))
    assert "clip" in str(error.value).partition(gguf.TAKES)[2] and "\n" not in str(error.value)


def test_it_is_looked_at_and_made_small_as_others(file):
    assert is_language(str(file))
    made = language_inspection(*language_model(str(file)), node=str(file), loaded=True, device="cpu")
    assert not [row for row in made.rows if row.failed] and f'model: "{file}"' in made.start
    empty = weightless.language(str(file))
    assert empty.device.type == "meta" and empty.config.hidden_size == tiny_gguf.WIDTH
    node, (remark, *_) = texts.small({"model": {"gguf": str(file)}})
    assert node["model"]["kind"] == "LlamaForCausalLM" and "its GGUF file" in remark


def test_it_is_a_reference_of_another(file, tmp_path):
    other = tiny_gguf.write(tmp_path / "other.gguf", seed=1)
    policy = mm.policies.transformers(str(file), lora=mm.Lora(rank=2), max_completion=4)
    policy.refer("teacher", mm.policies.transformers(str(other), max_completion=4), ["hi"])
    rollout = policy.sample(["hi"], 2, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref", "teacher"], 2)
    assert torch.equal(rollout.held.refs["ref"], rollout.log_probs)
    assert not torch.allclose(rollout.held.refs["teacher"], rollout.log_probs, atol=1e-2)


def run_of(model, folder, mmalign, *, lora):
    """A run of one step on a pair, sampled from and exported: its export."""
    policy = {"use": "transformers", "model": model, "max_completion": 4, "lora": lora}
    config = {
        "use": "offline", "policy": policy, "records": {"use": "texts", "path": "pairs.jsonl"}, "method": {"use": "dpo"},
        "steps": 1, "batch": {"records": 1}, "optimizer": {"rate": 0.01}, "evaluation": {"prompts": ["hi"], "samples": 1},
        "run": {"name": "r", "trackers": []},
    }  # fmt: skip
    (folder / "pairs.jsonl").write_text('{"prompt": "hi", "chosen": "a", "rejected": "b"}\n')
    (folder / "c.yaml").write_text(json.dumps(config))
    for words in (["train", "c.yaml"], ["sample", "r", "--count", "1"], ["export", "r"]):
        done = mmalign(*words)
        assert done.code == 0, done.err
    return folder / "runs" / "r" / "export"


@pytest.mark.parametrize("lora", [{"rank": 2}, None])
def test_a_run_of_it_is_sampled_and_exported(file, tmp_path, lora, mmalign, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = (run_of(str(file), tmp_path, mmalign, lora=lora) / "README.md").read_text()
    assert (f"from_pretrained({str(file.parent)!r}, gguf_file='tiny.gguf'" in card) == (lora is not None)


def test_an_export_of_a_model_in_a_package_names_the_package_and_no_path(file, tmp_path, mmalign, monkeypatch):
    """The code of its card finds the package wherever it is installed, and does not import it."""
    here, there = (tmp_path / name / "a_package" / "models" for name in ("here", "there"))
    here.mkdir(parents=True)
    (here.parent / "__init__.py").write_text("raise RuntimeError('is not imported')\n")
    (here / "x.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path)
    export = run_of("a_package/models/x.gguf", tmp_path, mmalign, lora={"rank": 2})
    card = (export / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert str(tmp_path) not in code and "base_model:" not in card and "# r\n\na_package/models/x.gguf, aligned" in card
    assert json.loads((export / "adapter_config.json").read_text())["base_model_name_or_path"] == "a_package/models/x.gguf"
    there.parent.parent.mkdir()
    here.parent.rename(there.parent)
    code = code.replace('"."', repr(str(export)))
    path = f"import sys\nsys.path.insert(0, {str(there.parent.parent)!r})\n"
    ran = [sys.executable, "-I", "-c", path + code + "print(type(model).__name__)"]
    told = subprocess.run(ran, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout.split()[-1:]) == (0, ["PeftModelForCausalLM"]), told.stderr
