"""Several processes that compute each row of a language model together, each a part of every layer, take the steps of one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # these two here, so that no forked process has to import them again
import torch.distributed.tensor

import mmalign as mm
from mmalign.distributed.team import joined
from mmalign.policies.language.models import tensors
from mmalign.policies.settings import Lora
from mmalign.policies.twins import visions
from mmalign.types import UserError
from tests.distributed.test_every_method import CLOSE_IN_FLOAT32, PROMPTS, differences, settings, varied
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import together

TOGETHER = {"tensor": 2}
APART = 1e-5
"""Of the largest number of a tensor: float32, some 20 layers of roundings of 6e-8 each, whose sums are of other parts."""


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def model_of(kind: str) -> Any:
    """With as many heads as two processes can share; biases and norms are not what they begin as."""
    if kind == "llava":
        made, _ = visions.twin("LlavaForConditionalGeneration")
    else:
        config = tiny_text.config(kind)
        config.num_attention_heads = 4
        if config.to_dict().get("num_key_value_heads"):
            config.num_key_value_heads = 2
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return made


def policy_of(kind: str, **more: Any) -> Any:
    policy = transformers(model_of(kind).double(), tiny_text.tokenizer(), max_completion=7, **more)
    with torch.no_grad():  # a LoRA begins as nothing
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return policy


def train(folder: Path, *, kind: str = "qwen3", policy: dict[str, Any] | None = None, **more: Any) -> Any:
    given = {**settings(folder), "steps": 2, **more}
    batch = {"prompts": 2, "group": 4, "micro_rows": 3, "updates": 2}
    made = policy_of(kind, **(policy or {}))
    return mm.online(made, PROMPTS, {"own": varied}, mm.methods.grpo(beta=0.1), batch=batch, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "more"),
    [(2, {"policy": {"lora": Lora(rank=2, targets="all-linear")}}), (4, {"kind": "gpt_neox", "policy": {"gradient_checkpointing": True}})],
    ids=["two, lora", "two and two, full"],
)
def test_they_take_the_steps_of_one(count: int, more: dict[str, Any], tmp_path: Path) -> None:
    """Of four, two and two have other rows."""
    train(tmp_path / "one", **more)
    ended = together(count, lambda rank: train(tmp_path / "many", devices=TOGETHER, **more), tmp_path / "processes")
    assert [code for code, _ in ended] == [0] * count, "\n".join(text for _, text in ended)
    assert not differences(tmp_path / "one", tmp_path / "many", CLOSE_IN_FLOAT32)


def test_families_say_the_same_and_have_the_same_gradient(tmp_path: Path) -> None:
    kinds = ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_neox", "cohere", "granite", "mixtral", "llava"]
    models = {kind: model_of(kind) for kind in kinds}
    ids = torch.tensor([[7, 9, 11, 8, 13]])

    def of(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits behind a cache of three tokens, and the gradient of their squares."""
        model.zero_grad()
        cache = model(input_ids=ids[:, :3], use_cache=True).past_key_values
        logits = model(input_ids=ids[:, 3:], past_key_values=cache, use_cache=True).logits
        logits.square().sum().backward()
        return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    whole = {kind: of(copy.deepcopy(model), ids) for kind, model in models.items()}

    def act(rank: int) -> None:
        team = joined()
        for kind, model in models.items():
            tensors.divided(model, 2, 2, rank)
            layers = dict(tensors.planned(model))
            assert len(layers) >= 4, kind
            used = []
            name, (layer, _) = next((name, each) for name, each in layers.items() if each[1] == tensors.BY_COLUMNS)
            layer.register_forward_hook(lambda _, given, out: used.append((given[0].shape[-1], out.shape[-1])))  # noqa: B023
            logits, gradient = of(model, ids)
            assert {width * 2 for _, width in used} == {len(layer.weight)}, (kind, name)  # type: ignore[arg-type]
            wanted, gradients = whole[kind]
            assert (logits - wanted).abs().max() < APART * wanted.abs().max(), kind
            assert gradient.keys() == gradients.keys()
            team.add(gradient.values())
            for name, value in gradients.items():
                assert (gradient[name] / 2 - value).abs().max() <= APART * value.abs().max() + 1e-9, (kind, name)

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)


def test_what_cannot_be_divided_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tensor: got 2 with place: fsdp2"):
        train(tmp_path, devices={"place": "fsdp2", **TOGETHER})
    with pytest.raises(UserError, match="tensor: got 2 with sequence: 2; takes one of them"):
        train(tmp_path, devices={"sequence": 2, **TOGETHER})
    with pytest.raises(UserError, match=r"devices\.tensor: got 2 in one process; takes as many"):
        train(tmp_path, devices=TOGETHER)
    run = {"folder": str(tmp_path), "name": "run", "trackers": ()}
    trials: dict[str, dict[str, Any]] = {
        r"devices\.tensor: got 3 and 2 processes": {"devices": {"tensor": 3}},
        r"TransformersPolicy is no denoiser of diffusers; takes 1, or devices\.tensor": {"devices": {"sequence": 2}},
        "transformers has no plan that divides layers of GPT2LMHeadModel; takes 1": {"kind": "gpt2"},
        r"run\.gradients: got devices\.sequence or tensor": {"run": {**run, "gradients": 1}},
    }

    def act(rank: int) -> None:
        for line, more in trials.items():
            with pytest.raises(UserError, match=line):
                train(tmp_path, **{"devices": TOGETHER, **more})
        narrow = tiny_text.model("qwen2")
        with pytest.raises(UserError, match="Qwen2ForCausalLM has 1 heads of keys; takes a number that divides these"):
            tensors.divided(narrow, 2, 2, rank)
        odd = model_of("llama")
        odd.tp_plan = {name: style for name, style in odd.tp_plan.items() if "down_proj" not in name}
        with pytest.raises(UserError, match="LlamaForCausalLM does not run when its plan divides it"):
            tensors.divided(odd, 2, 2, rank)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"logits of LlamaForCausalLM are [0-9.]+ away when"):
            patch.setattr(tensors, "_sum", lambda value, group: value)
            tensors.divided(model_of("llama"), 2, 2, rank)

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]


def test_a_policy_that_was_divided_is_so_in_its_next_run(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        policy, more = policy_of("qwen3"), settings(tmp_path)
        for name, devices in (("first", TOGETHER), ("second", TOGETHER), ("third", {})):
            more["run"] = {"folder": str(tmp_path), "name": name, "trackers": ()}
            given: dict[str, Any] = {"batch": {"prompts": 2, "group": 2}, "devices": devices, **more}
            if name == "third":
                with pytest.raises(UserError, match="got 1, and the layers of Qwen3ForCausalLM are divided by 2 already"):
                    mm.online(policy, PROMPTS, {"own": varied}, mm.methods.grpo(), **given)
            else:
                mm.online(policy, PROMPTS, {"own": varied}, mm.methods.grpo(), **given)

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]
