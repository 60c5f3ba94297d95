"""Memory by counting: of modules without weights what the same modules take with them, and the table that a config gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from mmalign.cli.app import app
from mmalign.commands.footprint import footprint as count
from mmalign.policies.inspecting import footprint, footprint_language
from mmalign.policies.inspecting.ledger import Fake, Ledger, size_of
from mmalign.policies.inspecting.weightless import language, pipeline
from mmalign.policies.settings import Lora, Memory, Schedule, TextMemory
from mmalign.policies.twins import texts
from mmalign.policies.twins.pipelines import twin
from mmalign.types import UserError

DENOISER = {
    "use": "diffusers", "pipeline": {"use": "policies.twins.pipelines.twin", "pipeline": "StableDiffusion3Pipeline"},
    "lora": {"rank": 4}, "schedule": {"steps": 4, "guidance": 4.5}, "call": {"height": 32, "width": 32, "max_sequence_length": 8},
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "use": "online",
    "policy": {
        "use": "transformers", "model": {"use": "policies.twins.texts.twin", "kind": "LlamaForCausalLM"}, "lora": {"rank": 4},
        "max_prompt": 16, "max_completion": 8,
    },
    "method": {"use": "grpo", "beta": 0.0},
    "batch": {"prompts": 2, "group": 4, "micro_rows": 4},
    "optimizer": {"rate": 1.0e-4, "ema": 0.9},
}  # fmt: skip


def by_name(parts: list[footprint.Part]) -> dict[str, int]:
    return {part.name.partition(":")[0].partition(" (")[0]: part.size for part in parts}


def test_a_ledger_counts_storages_once_and_forgets_what_nobody_holds() -> None:
    ledger = Ledger()
    with ledger:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]
        c = a + 1  # 4,000 more
        assert ledger.live == 8000
        del a, c
        assert ledger.live == 4000 and len(b) == 8
        torch.zeros(500)
    del b
    assert (ledger.live, ledger.peak) == (0, 8000)


def test_fake_weights_keep_shapes_types_and_ties() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4, bias=False)})
    module["b"].weight = module["a"].weight
    module["a"].requires_grad_(False)
    fake = Fake()
    fake.weights(module)
    assert module["b"].weight is module["a"].weight and not module["a"].weight.requires_grad
    assert size_of(module.parameters()) == 64 and fake.ledger.live == 64
    with fake:
        module["a"](torch.zeros(2, 3))
    assert fake.ledger.peak >= 64 + 2 * 4 * 4


def test_a_pass_of_two_layers_by_hand() -> None:
    """x [8, 16] -> h [8, 32] -> y [8, 4], float32: x and relu's output are kept."""
    net, fake = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), Fake()
    fake.weights(net)
    with fake:
        x = torch.zeros(8, 16)
    measured = footprint.backward_pass(fake, lambda: net(x), list(net.parameters()))
    assert measured.saved == 8 * 32 * 4 + 8 * 4 * 4  # relu's output, and what comes out; x was there before
    assert measured.peak >= measured.saved + sum(p.numel() * 4 for p in net[2].parameters())


def test_gradients_of_the_pass_before_are_there_and_those_of_this_one_are_added_to_them_one_by_one() -> None:
    net, fake = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)), Fake()
    fake.weights(net)
    with fake:
        x = torch.zeros(1, 64)
    one = 64 * 64 * 4
    assert one <= footprint.backward_pass(fake, lambda: net(x), list(net.parameters())).peak < 1.5 * one
    assert size_of([x, x.view(8, 8), x]) == 2 * 64 * 4  # by tensors, each once


def test_gradients_of_embeddings_that_are_the_output_too_are_added_up_in_place() -> None:
    """Autograd has two of them at once beside those of the pass before, as untied ones have; not three."""

    def peak(*, tied: bool) -> int:
        embed, head, fake = nn.Embedding(1000, 8), nn.Linear(8, 1000, bias=False), Fake()
        if tied:
            head.weight = embed.weight
        net = nn.Sequential(embed, head)
        fake.weights(net)
        with fake:
            ids = torch.zeros(2, dtype=torch.int64)
        return footprint.backward_pass(fake, lambda: net(ids), list(net.parameters())).peak

    assert 2 * 1000 * 8 * 4 <= peak(tied=True) < 3 * 1000 * 8 * 4
    assert 1000 * 8 * 4 <= peak(tied=False) < 2 * 1000 * 8 * 4


def test_checkpointing_and_fewer_steps_come_to_what_they_should() -> None:
    def update(rows: footprint.Rows, **more: Any) -> dict[str, int]:
        shape = footprint.diffusers(
            twin("StableDiffusion3Pipeline"), lora=Lora(rank=4), schedule=Schedule(steps=4, guidance=4.5), memory=Memory(**more),
            call={"height": 32, "width": 32, "max_sequence_length": 8},
        )  # fmt: skip
        return by_name(shape.measure(rows).parts)

    whole, checkpointed = update(footprint.Rows(8, 4, 4)), update(footprint.Rows(8, 4, 4, micro_steps=1), gradient_checkpointing=True)
    base, small = (next(size for name, size in peak.items() if name.startswith("activations")) for peak in (whole, checkpointed))
    assert 3 * small < 0.4 * base  # of three steps that are trained, one
    assert "rollout" not in whole  # its latents, before and after each of four steps, wait on the CPU


def test_shared_prompts_are_kept_once() -> None:
    def kept(**more: Any) -> int:
        shape = footprint_language.transformers(texts.twin("LlamaForCausalLM"), max_prompt=64, max_completion=8, memory=TextMemory(**more))
        return by_name(shape.measure(footprint.Rows(8, 8, 8)).parts)["activations kept for the backward pass"]

    assert kept() < 0.5 * kept(shared_prefixes=False)


def test_the_table_of_a_config() -> None:
    counted = count(CONFIG, card="0.9GB")
    parts = by_name(counted.parts)
    lora = parts["LoRA"]
    assert parts["gradients"] == parts["EMA"] == lora and 2 * lora <= parts["states of adamw"] < 2.2 * lora
    assert "set of parameters" not in parts and counted.peak[1] == max(counted.peaks.values())
    sizes = [part.size for part in counted.parts]
    assert sizes == sorted(sizes, reverse=True)
    whole = by_name(count({**CONFIG, "policy": {**CONFIG["policy"], "lora": None}}).parts)
    assert whole["set of parameters"] == whole["gradients"] > lora


@pytest.mark.parametrize(("use", "least", "most"), [("sgd", 0.0, 0.0), ("adamw_8bit", 0.5, 2.0), ("adafactor", 0.05, 0.9)])
def test_states_of_optimisers(use: str, least: float, most: float) -> None:
    """Over the bytes of what is trained: no momentum; two means in 8 bits, but for what is small; a row and a column."""
    sizes = by_name(count({**CONFIG, "policy": {**CONFIG["policy"], "lora": None}, "optimizer": {"use": use, "rate": 1e-3}}).parts)
    assert least <= sizes[f"states of {use}"] / sizes["gradients"] <= most


def test_the_command_says_what_to_change(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "policy": DENOISER, "method": {"use": "flow_grpo", "beta": 0.0}}))
    fits = CliRunner().invoke(app, ["rehearse", str(file), "--memory", "--card", "h200"])
    assert fits.exit_code == 0 and "h200: fits: 0.0 GiB in " in fits.output
    file.write_text(yaml.safe_dump(CONFIG))
    small = CliRunner().invoke(app, ["rehearse", str(file), "--memory", "--card", "0.859GB"])
    assert small.exit_code == 2 and "0.859GB: does not fit, by" in small.output and "to change: policy.memory" in small.output
    for words, line in (
        (["--card", "h200"], "--card: got h200 without --memory"),
        (["--memory", "--card", "h300"], "--card: got 'h300', takes t4,"),
        (["--memory", "policy.use=gaussian"], "policy.use: got 'gaussian'; --memory counts diffusers and transformers"),
    ):
        refused = CliRunner().invoke(app, ["rehearse", str(file), *words])
        assert refused.exit_code == 2 and line in refused.output, refused.output


def test_shapes_that_are_known_have_the_sizes_of_their_models() -> None:
    """In millions; its card says 8.3 billion."""
    assert round(sum(p.numel() for p in language("Qwen/Qwen2.5-VL-7B-Instruct").parameters()) / 1e6) == 8292
    with pytest.raises(UserError, match=r"the shapes of stabilityai/stable-diffusion-xl-base-1\.0 are not known here"):
        pipeline("stabilityai/stable-diffusion-xl-base-1.0")


def test_of_processes_that_compute_rows_together_each_holds_a_part() -> None:
    """Of a language model the keys and values of its heads, and what lies between two layers that are divided; of a denoiser its tokens."""
    model = {"use": "policies.twins.texts.twin", "kind": "LlamaForCausalLM"}
    config = {**CONFIG, "policy": {**CONFIG["policy"], "model": model}}
    one, two = (by_name(count({**config, "devices": {"tensor": number}}).parts) for number in (1, 2))
    keys, kept = "keys and values of 8 rows of 16 + 8 tokens", "activations kept for the backward pass"
    assert two[keys] * 2 == one[keys] and one[kept] / 2 < two[kept] < 0.9 * one[kept]
    same = ("weights", "LoRA", "gradients", "states of adamw", "EMA")
    assert [two[name] for name in same] == [one[name] for name in same]
    images = {**CONFIG, "policy": DENOISER, "method": {"use": "flow_grpo"}}
    one, two = (by_name(count({**images, "devices": {"sequence": number}}).parts) for number in (1, 2))
    assert one[kept] / 2 <= two[kept] < 0.55 * one[kept]  # latents of the rollout are whole
    work = "working memory of a backward pass"
    assert two[work] == one[work]
    with pytest.raises(UserError, match=r"devices\.sequence: got 2, and policy\.use is transformers; takes 1, or devices\.tensor"):
        count({**config, "devices": {"sequence": 2}})
    with pytest.raises(UserError, match="takes a number that divides these"):
        count({**config, "devices": {"tensor": 7}})
