"""Language models as others load them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import mmalign as mm
from mmalign.policies.adapters import lora_layers
from mmalign.policies.exports import language
from mmalign.policies.settings import Lora
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

TOLD = """
import sys, torch
print(round(float(model.eval()(input_ids=torch.tensor([[5, 9, 11]])).logits.double().norm()), 4))
assert "mmalign" not in sys.modules
"""


def trained(**more):
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=9, **more)
    for p in policy.parameters().values():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return policy


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)])
def test_what_is_written_answers_as_the_live_model(tmp_path, lora):
    policy = trained(lora=lora, heads=["value"])
    (form,) = language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", card=lambda forms: forms[0].name)
    model = form.load(tmp_path / "out", tiny_text.model()).eval()
    ids = torch.tensor([[5, 9, 11]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, policy.model(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(model(input_ids=ids).logits, tiny_text.model()(input_ids=ids).logits, atol=1e-3)
    assert (tmp_path / "out" / "README.md").read_text() == ("full" if lora is None else "peft")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="exists"):
        language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab")


def test_an_adapter_says_its_base_and_its_tensors_say_all(tmp_path):
    policy = trained(lora=Lora(rank=2, alpha=8.0))
    language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", name="some/model")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["task_type"], config["lora_alpha"]) == ("some/model", "CAUSAL_LM", 2)
    stored, layers = load_file(tmp_path / "out" / "adapter_model.safetensors"), lora_layers(policy.model)
    assert len(stored) == 2 * len(layers) > 0
    for name, layer in layers.items():
        delta = stored[f"base_model.model.{name}.lora_B.weight"] @ stored[f"base_model.model.{name}.lora_A.weight"]
        torch.testing.assert_close(delta, layer.get_delta_weight("default").detach(), atol=1e-6, rtol=1e-6)


def test_a_lora_run_is_handed_over_without_words_about_pipelines(tmp_path, mmalign):
    tiny_text.model().save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "c.yaml").write_text(
        f"use: online\npolicy: {{use: transformers, model: {tmp_path / 'base'}, max_completion: 6, lora: {{rank: 2, alpha: 4}}}}\n"
        "prompts: [ab]\nrewards:\n  short: {use: length, most: 9, unit: characters, soft: 9}\nmethod: {use: grpo, beta: 0.0}\nsteps: 1\n"
        f"batch: {{prompts: 2, group: 4}}\nrun: {{name: r, folder: {tmp_path}, trackers: []}}\n"
    )
    assert mmalign("train", str(tmp_path / "c.yaml")).code == 0
    done = mmalign("export", str(tmp_path / "r"))
    assert (done.code, done.out) == (0, f"export: {tmp_path / 'r' / 'export'} (parameters: trained; forms: peft)\n"), done.err
    config = json.loads((tmp_path / "r" / "export" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert "vllm serve" in (tmp_path / "r" / "export" / "README.md").read_text()
    done = mmalign("export", str(tmp_path / "r"), "--merge", "--out", str(tmp_path / "merged"))
    assert done.code == 0 and "forms: full)" in done.out, done.err
    folders = [tmp_path / "r" / "export", tmp_path / "merged"]
    codes = [re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1] for folder in folders]
    both = "".join(code.replace('"."', repr(str(folder))) + TOLD for code, folder in zip(codes, folders, strict=True))
    told = subprocess.run([sys.executable, "-I", "-c", both], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    answers = told.stdout.split()
    assert len(answers) == 2 and len(set(answers)) == 1, answers


def test_another_base_is_found_out_and_nothing_is_left(tmp_path):
    with pytest.raises(UserError, match="nats apart"):
        language.save(trained(lora=Lora(rank=2)), tmp_path / "out", base=lambda: tiny_text.model(seed=1), prompt="ab")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_exported(tmp_path):
    tiny_text.model().save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    policy = mm.policies.transformers(str(tmp_path / "base"), max_completion=6)
    reward = lambda outputs, prompts, **columns: torch.tensor([float(text.count("a")) for text in outputs])  # noqa: E731
    run = mm.online(
        policy,
        ["ab"],
        {"letters": reward},
        mm.methods.grpo(beta=0.0),
        steps=2,
        batch={"prompts": 2, "group": 4},
        optimizer=mm.adamw(rate=1e-2),
        run={"folder": str(tmp_path / "runs"), "trackers": ()},
    )
    exported = mm.commands.export(run.path)
    assert exported.forms == ("full",)
    model = AutoModelForCausalLM.from_pretrained(exported.path).eval()
    ids = torch.tensor([[5, 9, 11]])
    assert torch.allclose(model(input_ids=ids).logits, policy.model(input_ids=ids).logits, atol=1e-5)
    page = (exported.path / "README.md").read_text()
    assert "library_name: transformers" in page and "AutoModelForCausalLM.from_pretrained(folder)" in page and "denoiser" not in page


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_what_servers_of_adapters_ask_for(tmp_path, targets):
    """By vLLM's documentation: layers by peft's names, one scale for all, no biases, no whole modules; and no lm_head unless asked for."""
    policy = trained(lora=Lora(rank=2, alpha=8.0, targets=targets))
    language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", name="some/model")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert all(re.fullmatch(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight", key) for key in stored)
    assert any("lm_head" in key for key in stored) == ("lm_head" in targets)
    plain = {"bias": "none", "modules_to_save": None, "use_dora": False, "use_rslora": False, "lora_alpha": config["r"]}
    assert {key: config[key] for key in plain} == plain and config["alpha_pattern"] == config["rank_pattern"]


def test_merged_is_the_whole_model_with_lora_in_its_weights(tmp_path):
    policy = trained(lora=Lora(rank=2, alpha=4.0), heads=["value"])
    (form,) = language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", form="merged")
    model, ids = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), torch.tensor([[5, 9, 11]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, policy.model(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(model(input_ids=ids).logits, tiny_text.model()(input_ids=ids).logits, atol=1e-3)
    names = {key for file in (tmp_path / "out").glob("*.safetensors") for key in load_file(file)}
    assert form.name == "full" and not any("lora" in name or "base_layer" in name for name in names)
    assert not (tmp_path / "out" / "adapter_config.json").exists() and (tmp_path / "out" / "tokenizer.json").is_file()


def test_forms_that_a_language_model_does_not_have_are_a_line(tmp_path):
    policy = trained(lora=Lora(rank=2))
    with pytest.raises(UserError, match="comfyui: got a language model"):
        language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", form="comfyui")
    policy.stored = 3
    with pytest.raises(UserError, match="fits no others; takes the adapter"):
        language.save(policy, tmp_path / "out", base=tiny_text.model, prompt="ab", form="merged")
    assert list(tmp_path.iterdir()) == []
