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
    trials: dict[str, dict[str, Any]] = {
        "got 3 and 2 processes": {"devices": {"sequence": 3}},
        "diffusers has no plan for the tokens of SD3Transformer2DModel": {"kind": "StableDiffusion3Pipeline", "call": {"height": 32}},
        "the gradient goes through several calls of the model; takes 1": {"method": mm.methods.draft()},
        "must be divisible by mesh size; takes sizes": {"call": {"height": 32, "width": 32, "max_sequence_length": 15}},
        "run.gradients: got devices.sequence": {"run": {"folder": str(tmp_path), "name": "run", "trackers": (), "gradients": 1}},
    }

    def act(rank: int) -> None:
        for line, more in trials.items():
            with pytest.raises(UserError, match=line):
                train(tmp_path, **{"devices": TOGETHER, **more})

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended[0][1]


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
