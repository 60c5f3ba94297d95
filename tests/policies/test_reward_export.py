"""Reward models that no other library loads, as folders of their own: a fresh process scores by them, and a changed one is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.types import UserError

TINY: dict[str, Any] = {
    "embed_dim": 8, "vision_cfg": {"image_size": 8, "patch_size": 4, "layers": 1, "width": 16, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
ASK = """
import json
print("SAID", json.dumps(reward(["one", "two words here"], ["a handwritten seven"] * 2).tolist()))
"""


def reader(name: str) -> Any:
    if name == "open_clip":
        return mm.policies.open_clip(TINY, device="cpu")
    if name == "noisy_latents":
        return mm.policies.noisy_latents(mm.policies.diffusers(mm.worlds.digits()))
    return mm.policies.named_features(rewards={"long": mm.rewards.length(2), "digit": mm.rewards.format(r".*[0-9].*")})


@pytest.mark.parametrize("name", ["open_clip", "noisy_latents", "named_features"])
def test_the_folder_scores_as_the_live_model_without_its_run(tmp_path: Path, name: str) -> None:
    images = torch.linspace(0, 1, 2 * 64).view(2, 1, 8, 8)
    outputs: Any = ["one", "two words here"] if name == "named_features" else images
    pairs, prompts = [Pair("a handwritten seven", outputs[0], outputs[1], id="0")], ["a handwritten seven"] * 2
    mm.offline(
        mm.policies.scorer(reader(name)), pairs, mm.methods.bradley_terry(), steps=2, optimizer=mm.adamw(rate=1e-2),
        batch={"records": 1}, evaluation={"records": [pairs[0]._replace(prompt="a handwritten one")]},
        run={"folder": str(tmp_path), "name": "run", "trackers": ()},
    )  # fmt: skip
    live: Any = mm.rewards.trained(str(tmp_path / "run"))(outputs, prompts)
    assert live[0] != live[1]
    assert mm.export(tmp_path / "run", out=tmp_path / "out").forms == ("mmalign",)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shutil.rmtree(tmp_path / "run")
    torch.testing.assert_close(mm.rewards.trained(str(tmp_path / "out"))(outputs, prompts), live, rtol=1e-5, atol=1e-6)
    if name == "named_features":  # whose process is over in seconds
        made = subprocess.run([sys.executable, "-c", code + ASK], capture_output=True, text=True, check=True, cwd=tmp_path / "out")
        said = json.loads(made.stdout.splitlines()[-1].removeprefix("SAID "))
        torch.testing.assert_close(torch.tensor(said).double(), live, rtol=1e-5, atol=1e-6)


def test_a_folder_that_is_not_as_it_was_written_is_refused(tmp_path: Path) -> None:
    mm.offline(
        mm.policies.scorer(reader("named_features")), [Pair("p", "one", "two 2 words", id="0")], mm.methods.bradley_terry(), steps=1,
        batch={"records": 1}, evaluation={"records": [Pair("q", "one", "2")]}, run={"folder": str(tmp_path), "name": "run", "trackers": ()},
    )  # fmt: skip
    mm.export(tmp_path / "run", out=tmp_path / "out")
    with pytest.raises(UserError, match="exists: takes a folder that is not there yet"):
        mm.export(tmp_path / "run", out=tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model\.safetensors: is not what was exported"):
        mm.rewards.trained(str(tmp_path / "out"))
    (tmp_path / "out" / "model.safetensors").write_bytes(weights)
    (tmp_path / "out" / "config.yaml").write_text("policy: {use: other}\n")
    with pytest.raises(UserError, match=r"config\.yaml: is not what was exported"):
        mm.rewards.trained(str(tmp_path / "out"))
