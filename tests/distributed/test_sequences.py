"""Several processes that compute each row together, each a part of its tokens, take the steps that one process takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # these two here, so that no forked process has to import them again
import torch.distributed.tensor

import mmalign as mm
from mmalign.distributed.team import joined
from mmalign.policies.pipelines.calls import sequences
from mmalign.policies.settings import Lora, Schedule
from mmalign.policies.twins import pipelines
from mmalign.types import UserError
from tests.distributed.test_every_method import differences, settings
from tests.helpers.processes import together

CLOSE = {"rtol": 3e-4, "atol": 3e-5}  # as in test_denoisers.py: float32, sums of other parts
TOGETHER = {"sequence": 2}
PROMPTS = ["a cat", "a dog"]


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def bright(outputs: Any, prompts: list[str]) -> Any:
    """Nobody asks it but the first of each two who compute together: a judge that costs money is paid once."""
    assert int(os.environ.get("RANK", 0)) % 2 == 0, "asked twice"
    return outputs.double().flatten(1).mean(1)


def policy_of(kind: str, lora: Lora | None = None, **call: Any) -> Any:
    pipe = pipelines.twin(kind)
    with torch.no_grad():
        for number, parameter in enumerate(pipe.transformer.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return mm.policies.diffusers(pipe, device="cpu", schedule=Schedule(steps=2), lora=lora, call=call)


def train(folder: Path, *, kind: str = "FluxPipeline", lora: Lora | None = None, method: Any = None, call: Any = None, **more: Any) -> Any:
    policy = policy_of(kind, lora, **(call or {"height": 32, "width": 32, "max_sequence_length": 16}))
    given = {**settings(folder), "optimizer": mm.adamw(rate=1e-3, eps=1e-3), **more}
    given["evaluation"] = {"every": 9, "samples": 1, "prompts": PROMPTS}
    batch = {"prompts": 2, "group": 2, "micro_rows": 2}
    return mm.online(policy, PROMPTS, {"bright": bright}, method or mm.methods.flow_grpo(clip=0.2, beta=0.1), batch=batch, **given)


@pytest.mark.parametrize(("count", "more"), [(2, {"lora": Lora(rank=2)}), (4, {})], ids=["two, lora", "two and two, full"])
def test_they_take_the_steps_of_one(count: int, more: dict[str, Any], tmp_path: Path) -> None:
    """Of four, two and two have other rows."""
    train(tmp_path / "one", **more)
    ended = together(count, lambda rank: train(tmp_path / "many", devices=TOGETHER, **more), tmp_path / "processes")
    assert [code for code, _ in ended] == [0] * count, "\n".join(text for _, text in ended)
    assert not differences(tmp_path / "one", tmp_path / "many", CLOSE)


def test_what_cannot_be_computed_together_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sequence: got 2 with place: fsdp2"):
        train(tmp_path, devices={"place": "fsdp2", "sequence": 2})
    with pytest.raises(UserError, match=r"devices\.sequence: got 2 in one process; takes as many"):
        train(tmp_path, devices=TOGETHER)
    with pytest.raises(UserError, match="ring: got 2 with sequence: 3; takes a number that divides it, or 1"):
        train(tmp_path, devices={"sequence": 3, "ring": 2})
    trials: dict[str, dict[str, Any]] = {
        "got 3 and 2 processes": {"devices": {"sequence": 3}},
        "diffusers has no plan for the tokens of SD3Transformer2DModel": {"kind": "StableDiffusion3Pipeline", "call": {"height": 32}},
        "the gradient goes through several calls of the model; takes 1": {"method": mm.methods.draft()},
        "must be divisible by mesh size; takes sizes": {"call": {"height": 32, "width": 32, "max_sequence_length": 15}},
        r"devices\.ring: got 2, and this device \(cpu\) has no attention in diffusers": {"devices": {**TOGETHER, "ring": 2}},
        "run.gradients: got devices.sequence": {"run": {"folder": str(tmp_path), "name": "run", "trackers": (), "gradients": 1}},
    }

    def act(rank: int) -> None:
        for line, more in trials.items():
            with pytest.raises(UserError, match=line):
                train(tmp_path, **{"devices": TOGETHER, **more})

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]


def forwards_on_a_cpu(ctx: Any, query: Any, key: Any, value: Any, *given: Any, _save_ctx: bool, _parallel_config: Any) -> Any:
    """What diffusers calls of a GPU's flash attention, by torch's own on a CPU, which says the logarithm of its sums as well."""
    _, dropout, causal, ctx.scale, _, with_sums = given
    q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))
    out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, scale=ctx.scale)
    out, sums = out.transpose(1, 2).contiguous(), sums.transpose(1, 2).contiguous()
    if _save_ctx:
        ctx.save_for_backward(query, key, value, out, sums)
    return (out, sums) if with_sums else out


def backwards_on_a_cpu(ctx: Any, gradient: Any, **given: Any) -> Any:
    order = (gradient, given["query"], given["key"], given["value"], given["out"], given["lse"])
    moved = [x.transpose(1, 2).contiguous() for x in order]
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*moved, 0.0, False, scale=ctx.scale)
    return tuple(x.transpose(1, 2) for x in found)


def test_rings_say_the_same_and_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two rings of two with rows of their own; and one row of four processes: two rings, between which heads are exchanged. A CPU has no
    attention in diffusers whose parts can be put together: torch's stands in for that of GPUs."""
    monkeypatch.setattr("diffusers.models.attention_dispatch._native_flash_attention_forward_op", forwards_on_a_cpu)
    monkeypatch.setattr("diffusers.models.attention_dispatch._native_flash_attention_backward_op", backwards_on_a_cpu)
    monkeypatch.setattr(sequences, "RINGS", {"cpu": ("_native_flash", (torch.float32,))})

    def of(count: int, ring: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
        policy, team = policy_of("FluxPipeline", height=32, width=32, max_sequence_length=16), joined()
        policy.compute_together(count, team.count, team.place, ring=ring)
        rollout = policy.sample(["a cat"], 2, torch.Generator().manual_seed(0))
        steps = policy.steps(rollout, torch.arange(2), torch.tensor([0, 1]))
        steps.log_probs.sum().backward()
        gradient = {name: p.grad for name, p in policy.parameters().items() if p.grad is not None}
        team.add(gradient.values())
        return [rollout.outputs, rollout.log_probs, steps.log_probs.detach()], {
            name: value * count / team.count for name, value in gradient.items()
        }

    tables, gradient = of(1, 1)

    def act(rank: int) -> None:
        for count in (2, 4):
            found, own = of(count, 2)
            for table, wanted in zip(found, tables, strict=True):
                torch.testing.assert_close(table, wanted, **CLOSE)
            assert own.keys() == gradient.keys()
            for name, value in gradient.items():
                torch.testing.assert_close(own[name], value, rtol=3e-4, atol=3e-5 * float(value.abs().max()), msg=f"{count} {name}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"computes in float32; takes policy\.dtype: bfloat16"):
            patch.setattr(sequences, "RINGS", {"cpu": ("_native_flash", (torch.bfloat16,))})
            of(2, 2)

    ended = together(4, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0] * 4, "\n".join(text for _, text in ended)


def test_a_policy_that_was_spread_is_spread_in_its_next_run(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        policy, more = policy_of("FluxPipeline", height=32, width=32, max_sequence_length=16), settings(tmp_path)
        for name, devices in (("first", TOGETHER), ("second", TOGETHER), ("third", {})):
            more["run"] = {"folder": str(tmp_path), "name": name, "trackers": ()}
            given: dict[str, Any] = {"batch": {"prompts": 2, "group": 2}, "devices": devices, **more}
            if name == "third":
                with pytest.raises(UserError, match="got 1, and the rows of FluxTransformer2DModel are spread over 2 already"):
                    mm.online(policy, PROMPTS, {"bright": bright}, mm.methods.flow_grpo(), **given)
            else:
                mm.online(policy, PROMPTS, {"bright": bright}, mm.methods.flow_grpo(), **given)

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]


def test_each_keeps_a_part_for_its_backward_pass(tmp_path: Path) -> None:
    """As ``rehearse --memory`` counts it: two processes half each, but for what is of a whole row (its time, its pooled prompt)."""

    def kept() -> int:
        policy = policy_of("FluxPipeline", height=64, width=64, max_sequence_length=32)
        policy.compute_together(joined().count, joined().count, joined().place)
        rollout = policy.sample(["a cat"], 2, torch.Generator().manual_seed(0))
        known = {p.untyped_storage().data_ptr() for net in policy.denoisers.values() for p in net.parameters()}
        held: dict[int, int] = {}

        def hold(value: torch.Tensor) -> torch.Tensor:
            if value.untyped_storage().data_ptr() not in known:
                held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
            steps = policy.steps(rollout, torch.arange(2), torch.tensor([0]))
        steps.log_probs.sum().backward()
        return sum(held.values())

    alone = kept()
    ended = together(2, lambda rank: (tmp_path / f"{rank}.txt").write_text(str(kept())), tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    parts = [int((tmp_path / f"{rank}.txt").read_text()) / alone for rank in range(2)]
    assert parts[0] == pytest.approx(parts[1]) and 0.45 < parts[0] < 0.55, parts
