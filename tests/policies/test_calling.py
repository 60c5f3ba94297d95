"""What a call of a pipeline asks, and how often."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.policies.pipelines.calls.interception import settled
from mmalign.policies.twins.pipelines import call_arguments, twin


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each search of all modules that diffusers makes to tell where a pipeline runs."""
    from diffusers import DiffusionPipeline

    own, searches = DiffusionPipeline._execution_device.fget, []
    monkeypatch.setattr(DiffusionPipeline, "_execution_device", property(lambda pipe: [searches.append(1), own(pipe)][1]))
    return searches


def test_replays_do_not_ask_again_where_a_pipeline_runs(asked: list[int]) -> None:
    pipe = twin("StableDiffusion3Pipeline")
    policy = mm.policies.diffusers(pipe, call=call_arguments(pipe), schedule=mm.Schedule(steps=3), device="cpu")
    rollout = policy.sample(["a"], 2, torch.Generator().manual_seed(0))
    asked.clear()
    policy.steps(rollout, torch.arange(2))
    assert asked == []
    policy.caller.denoisers["transformer"]._hf_hook = object()  # as accelerate's offloading leaves one
    policy.caller.device()
    assert asked == [1]


def test_a_settled_pipeline_is_what_it_was_afterwards() -> None:
    pipe = twin("StableDiffusion3Pipeline")
    own, names = type(pipe), set(vars(pipe))
    with settled(pipe, torch.device("meta")), settled(pipe, torch.device("cpu")):
        assert pipe._execution_device == torch.device("cpu") and type(pipe).__name__ == own.__name__
    assert type(pipe) is own and set(vars(pipe)) == names
