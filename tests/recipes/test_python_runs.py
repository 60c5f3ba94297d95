"""A run that was started from Python is one of the command line: its config is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import mmalign as mm
from mmalign.config import check
from mmalign.types import UserError


def started(tmp_path: Path, pipeline: Any = None, **changes: Any) -> Any:
    policy = mm.policies.diffusers(
        pipeline or mm.worlds.digits(), schedule=mm.Schedule(steps=3, kernel=mm.kernels.flow_sde(noise_level=1.0)), device="cpu"
    )
    given: dict[str, Any] = {
        "prompts": mm.worlds.digit_prompts(count=2),
        "rewards": {"proxy": mm.worlds.digits_proxy()},
        "method": mm.methods.flow_grpo(ratio="per_step", clip=0.2),
        "steps": 2,
        "batch": mm.Batch(prompts=2, group=2),
        "optimizer": mm.sgd(rate=1e-3),
        "evaluation": {"samples": 1, "every": 2, "call": {"num_inference_steps": 3}, "judges": {"gold": mm.worlds.digits_gold()}},
        "run": {"folder": str(tmp_path), "name": "python", "trackers": []},
    }
    return mm.online(policy, **{**given, **changes})


def test_its_config_is_whole_and_it_samples_exports_and_resumes(tmp_path: Path) -> None:
    run = started(tmp_path)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert check(config) == [] and config["use"] == "online" and config["optimizer"] == {"use": "sgd", "rate": 1e-3}
    assert config["policy"]["schedule"] == {"steps": 3, "kernel": {"use": "flow_sde", "noise_level": 1.0}}
    assert config["batch"] == {"prompts": 2, "group": 2} and config["evaluation"]["judges"] == {"gold": {"use": "digits_gold"}}
    assert run.sample(["a handwritten two"], count=1).is_file() and (run.export() / "README.md").is_file()
    with pytest.raises(UserError, match=r"optimizer\.rate was 0\.001, is 0\.01"):
        started(tmp_path, optimizer=mm.sgd(rate=1e-2), resume=True)
    assert started(tmp_path, steps=3, resume=True).summary["steps"] == 3


def test_what_no_config_can_say_is_said(tmp_path: Path) -> None:
    from mmalign.worlds.digits.base import digits

    run = started(tmp_path, pipeline=digits())  # not through the room, so that nobody wrote down how it was made
    with pytest.raises(UserError, match="does not say how to build the policy"):
        run.sample()
