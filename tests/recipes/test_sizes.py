"""Small in training, full in evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.commands._rehearsal_config import rehearsal_config
from mmalign.policies.twins import pipelines
from tests.helpers.small_run import online

KINDS = {"StableDiffusion3Pipeline": {}, "FluxPipeline": {}, "WanPipeline": {"num_frames": 5}}


@pytest.mark.parametrize("kind", KINDS)
def test_trained_small_and_evaluated_in_full(kind: str, tmp_path: Path) -> None:
    sizes: list[tuple[int, ...]] = []

    def bright(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        sizes.append((len(outputs), *outputs.shape[-2:]))
        return outputs.flatten(1).mean(1)

    policy = mm.policies.diffusers(
        pipelines.twin(kind), schedule={"steps": 3}, lora={"rank": 2},
        call={"height": 32, "width": 32, "max_sequence_length": 8, **KINDS[kind]},
    )  # fmt: skip
    run = online(
        tmp_path, policy=policy, prompts=["a fox"], rewards={"bright": bright}, method=mm.methods.flow_grpo(beta=0.1), steps=1,
        batch={"prompts": 1, "group": 2, "updates": 1},
        evaluation={"every": 1, "samples": 2, "call": {"height": 64, "width": 48, "num_inference_steps": 2}},
    )  # fmt: skip
    assert set(sizes) == {(2, 64, 48), (2, 32, 32)}
    assert run.summary["preflight_difference"] < 1e-6
    page = (run.path / "report.html").read_text(encoding="utf-8")
    frames = f"{KINDS[kind]['num_frames']} x " if KINDS[kind] else ""
    assert f"trained at {frames}32 x 32, evaluated at {frames}64 x 48" in page
    assert 'width="100" height="66"' in page  # two samples beside each other, with their gaps of 2


def test_a_rehearsal_keeps_the_ratio() -> None:
    config = {
        "use": "online", "rewards": {"b": {"use": "jpeg"}}, "method": {"use": "flow_grpo"}, "prompts": ["a fox"],
        "policy": {"use": "diffusers", "pipeline": "stabilityai/stable-diffusion-3.5-medium", "call": {"height": 512, "width": 512}},
        "evaluation": {"call": {"height": 1024, "width": 768}},
    }  # fmt: skip
    node = rehearsal_config(config, kind="StableDiffusion3Pipeline").node
    assert node["policy"]["call"]["height"] == 32
    assert (node["evaluation"]["call"]["height"], node["evaluation"]["call"]["width"]) == (64, 48)
