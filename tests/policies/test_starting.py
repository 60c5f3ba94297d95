"""A run that starts from another run, or from an adapter of peft's or diffusers': rank and alpha come from there."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mmalign as mm
from mmalign.policies.adapters import adapter, add_lora, write_adapter
from mmalign.policies.exports.pipelines import export
from mmalign.policies.language.models.members import making
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora, Train
from mmalign.policies.twins.pipelines import call_arguments, twin
from mmalign.runs import checkpoint
from mmalign.runs.weights import read
from mmalign.training import references
from mmalign.training.settings import Reference
from mmalign.types import UserError

X = torch.linspace(-1, 1, 12).view(3, 4)


def made(lora: Lora | None = None, **more: Any) -> tuple[nn.Module, ParameterSets]:
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(q_proj=nn.Linear(4, 6), v_proj=nn.Linear(6, 4)))
    return module, ParameterSets(module, lora=lora, **more)


def shaken(sets: ParameterSets) -> None:
    with torch.no_grad():
        for p in sets.trained.values():
            p.normal_(generator=torch.Generator().manual_seed(len(p)))


def saved(sets: ParameterSets, folder: Path) -> Path:
    """A run's folder."""
    state = {"learner": {"scales": dict(sets.scales)}}
    checkpoint.save(folder / "checkpoints", 1, tensors={**sets.tables(), "optimizer": {}}, state=state)
    return folder


def test_of_a_run_the_best_set_with_its_rank_and_alpha(tmp_path: Path) -> None:
    module, sets = made(Lora(rank=3, alpha=9.0))
    shaken(sets)
    wanted = module(X)
    sets.keep("best")
    shaken(sets)
    with torch.no_grad():
        sets.trained["q_proj.lora_B.default.weight"].add_(1.0)
    other, started = made(Lora(from_=str(saved(sets, tmp_path / "run"))))
    torch.testing.assert_close(other(X), wanted)
    assert started.scales == {"q_proj": 3.0, "v_proj": 3.0} and all(p.requires_grad for p in started.trained.values())
    with started.using("ref"):
        torch.testing.assert_close(other(X), wanted)  # of the start, not of the base


@pytest.mark.parametrize("rslora", [False, True])
def test_of_peft_patterns_and_rslora_count(tmp_path: Path, rslora: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(q_proj=nn.Linear(4, 6), v_proj=nn.Linear(6, 4)))
    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 3}, alpha_pattern={"v_proj": 5}, use_rslora=rslora
    )
    theirs = get_peft_model(module, config)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.normal_()
    theirs.save_pretrained(str(tmp_path))
    other, started = made(Lora(from_=str(tmp_path)))
    torch.testing.assert_close(other(X), theirs(X))
    assert started.trained["v_proj.lora_A.default.weight"].shape == (3, 6)
    base, sets = made(Lora(rank=4, alpha=1.0))
    policy = type("Policy", (), {"sets": sets})()
    references.load(policy, {"opponent": Reference(from_=str(tmp_path))}, runs=tmp_path)
    with sets.using("opponent"):  # of other ranks and scales than what is trained here
        torch.testing.assert_close(base(X), theirs(X))


@pytest.mark.parametrize("where", ["header", "tensors", "nowhere"])
def test_of_diffusers_the_header_or_tensors_tell_alpha(tmp_path: Path, where: str) -> None:
    module, sets = made(Lora(rank=2, alpha=1.0 if where != "nowhere" else 2.0))
    shaken(sets)
    weights, _ = adapter(module)
    held = {f"transformer.{name}": value.contiguous() for name, value in weights.items()}
    if where == "tensors":
        held |= {f"transformer.{layer}.alpha": torch.tensor(1.0) for layer in ("q_proj", "v_proj")}
    metadata = json.dumps({"transformer.lora_alpha": 1.0, "transformer.r": 2})
    header = {"format": "pt", **({"lora_adapter_metadata": metadata} if where == "header" else {})}
    save_file(held, tmp_path / "pytorch_lora_weights.safetensors", metadata=header)
    for place in (tmp_path, tmp_path / "pytorch_lora_weights.safetensors"):
        other, _ = made(Lora(from_=str(place)))
        torch.testing.assert_close(other(X), module(X))


def test_an_adapter_that_was_written_here_keeps_a_rank_and_a_scale_for_each_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    sets = ParameterSets(model, train=making(Train(language=Lora(rank=3, alpha=9.0, targets=["q_proj"]))))
    shaken(sets)
    write_adapter(model, tmp_path)
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2))
    ParameterSets(other, train=making(Train(language=Lora(from_=str(tmp_path)))))
    ids = torch.arange(8).unsqueeze(0)
    torch.testing.assert_close(other(ids).logits, model(ids).logits)


def test_whole_weights_start_what_is_trained_and_the_reference(tmp_path: Path) -> None:
    module, sets = made()
    shaken(sets)
    save_file({name: p.detach().contiguous() for name, p in module.named_parameters()}, tmp_path / "model.safetensors")
    for place in (saved(sets, tmp_path / "run"), tmp_path / "model.safetensors"):
        other, started = made(start=str(place))
        assert torch.equal(other(X), module(X))
        with started.using("ref"):
            assert torch.equal(other(X), module(X))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    module, sets = made(Lora(rank=2))
    shaken(sets)
    weights: dict[str, Tensor] = {name: value.contiguous() for name, value in adapter(module)[0].items()}
    files = {
        "more": weights | {"k_proj.lora_A.weight": torch.zeros(2, 4), "k_proj.lora_B.weight": torch.zeros(6, 2)},
        "half": {name: value for name, value in weights.items() if name != "v_proj.lora_B.weight"},
        "dora": weights | {"q_proj.lora_magnitude_vector": torch.zeros(6)},
        "wide": weights | {"q_proj.lora_A.weight": torch.zeros(2, 5)},
        "none": {},
    }
    for name, held in files.items():
        (tmp_path / name).mkdir()
        save_file(held, tmp_path / name / "adapter.safetensors")
    lines = {
        "more": r"policy\.lora\.from: .*more holds 2 tensors with no place in Sequential, such as k_proj\.lora_A\.weight",
        "half": r"policy\.lora\.from: .*half holds 1 tensors with no place in Sequential, such as v_proj\.lora_A\.weight",
        "dora": r"policy\.lora\.from: .*dora holds 1 tensors with no place in Sequential, such as q_proj\.lora_magnitude_vector",
        "wide": r"policy\.lora\.from: .*wide holds 2 tensors with no place in Sequential, such as q_proj\.lora_A\.weight",
        "none": r"policy\.lora\.from: .*none holds no LoRA; takes a run that trained one",
        "absent": r"policy\.lora\.from: nothing at .*absent; takes the folder of a run",
    }
    for name, line in lines.items():
        with pytest.raises(UserError, match=line):
            made(Lora(from_=str(tmp_path / name)))
    with pytest.raises(UserError, match="from: given beside rank, alpha or targets, which are read from there"):
        Lora(rank=2, from_="runs/x")
    with pytest.raises(UserError, match=r"policy\.start: given beside lora; takes lora: \{from: PLACE\}"):
        made(Lora(rank=2), start="runs/x")
    _, narrow = made(Lora(rank=2, targets=["q_proj"]))
    (tmp_path / "fine").mkdir()
    save_file(weights, tmp_path / "fine" / "adapter.safetensors")
    with pytest.raises(UserError, match=r"references\.dpo: got LoRA in 1 layers with none here, such as v_proj"):
        narrow.adopt("dpo", read(tmp_path / "fine", "references.dpo"))
    checkpoint.save(tmp_path / "old" / "checkpoints", 1, tensors=sets.tables(), state={})
    with pytest.raises(UserError, match=r"policy\.lora\.from: .* does not say the alpha of q_proj\.lora_A.*takes an export of it"):
        made(Lora(from_=str(tmp_path / "old")))


def test_all_linear_is_peft_s() -> None:
    def model() -> Any:
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
        )

    ours, theirs = model(), get_peft_model(model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    add_lora(ours, Lora(rank=2, targets="all-linear"))
    layers = [
        {name.split(".lora_A")[0].split(".")[-1] for name, _ in part.named_parameters() if ".lora_A" in name} for part in (ours, theirs)
    ]
    assert layers[0] == layers[1] and "lm_head" not in layers[0]


def test_an_export_has_its_whole_effect_in_loaders_that_know_no_alpha(tmp_path: Path) -> None:
    name = "FluxPipeline"
    pipe = twin(name)
    policy = mm.policies.diffusers(
        pipe, schedule=mm.Schedule(steps=2), call=call_arguments(pipe), device="cpu", lora=Lora(rank=4, alpha=8.0)
    )
    with torch.no_grad():
        for p in policy.parameters().values():
            p.normal_(std=0.2)
    export(policy, tmp_path / "x", base=lambda: twin(name), prompt="a red fox", card=None)
    stored = load_file(tmp_path / "x" / "pytorch_lora_weights.safetensors")
    key = next(key for key in stored if key.endswith("lora_A.weight")).removesuffix(".lora_A.weight")
    live = policy.denoiser.get_submodule(key.removeprefix("transformer.")).get_delta_weight("default")
    torch.testing.assert_close(stored[f"{key}.lora_B.weight"] @ stored[f"{key}.lora_A.weight"], live)
    again = mm.policies.diffusers(
        twin(name), schedule=mm.Schedule(steps=2), call=call_arguments(pipe), device="cpu",
        lora=Lora(from_=str(tmp_path / "x")),
    )  # fmt: skip
    torch.testing.assert_close(again.generate(["a red fox"], [0]), policy.generate(["a red fox"], [0]), rtol=1e-4, atol=1e-4)
