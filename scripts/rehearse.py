"""Rehearses configs, each in a process of its own, and prints a table.

python scripts/rehearse.py                                 # all under configs/
python scripts/rehearse.py wan* digits/*                   # some; nothing is downloaded
python scripts/rehearse.py --methods sd35_medium wan21_1b  # every method for generators on a twin of each of these models
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mmalign as mm
from mmalign.config import load
from mmalign.rooms import index

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASES = {
    "denoising": ("flow_grpo",),
    "denoising_preference": ("dpo",),
    "distillation": ("flow_grpo", "batch.updates=1", "policy.schedule.guidance=1.0", "policy.schedule.steps=4"),
    "forward_process": ("diffusion_nft",),
    "reward_gradient": ("flow_grpo", "batch.updates=1", "policy.schedule.steps=40"),
}
"""Room of methods -> whose config they are put into, and what is changed there: ReFL's steps are those of 40."""

ALL_NOISY = "policy.schedule.random={use: everything}"
NEEDS = {
    "b2_diffurl": ("policy.schedule.branches={use: fork, children: 2}", ALL_NOISY),
    "flash_grpo": ("policy.schedule.branches={use: one_step}",),
    "step_aware_po": ("policy.schedule.branches={use: candidates, children: 2}", ALL_NOISY, "method.gap=0"),
    "tempflow_grpo": ("policy.schedule.branches={use: at_each_step, children: 2}",),
    **dict.fromkeys(("dmd2", "tdm", "tdm_r1"), ("policy.schedule.kernel={use: ode}",)),
}
"""What a method has to be told beside."""

TEACHERS = {"sd35_medium": "stabilityai/stable-diffusion-3.5-large", "wan21_1b": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
"""Model -> another one of its latents."""


def told(model: str, room: str, name: str) -> tuple[str, ...]:
    """What the config of a model's room has to say for a method: a reward's name, rewards with a gradient, a teacher."""
    base, *changes = BASES[room]
    node = load(f"{model}/{base}", changes)
    if name == "gardo":
        return (f"method.diversity={next(iter(node['rewards']))}",)
    if room == "reward_gradient":
        return (f"rewards={json.dumps(_rewards(model))}",)
    if name in ("diffusion_opd", "opd"):
        inner = node["policy"].get("of", node["policy"])
        of = {key: value for key, value in inner.items() if key != "lora"} | {"pipeline": TEACHERS[model]}
        teacher = {**node["policy"], "of": of} if inner is not node["policy"] else of
        return (f"references={json.dumps({'teacher': {'policy': teacher}})}",)
    if name in ("seppo", "subject_rpo"):
        own = {"use": "against_own", "call": {"num_inference_steps": 2}, "of": node["records"]}
        return (f"records={json.dumps(own if name == 'seppo' else own | {'rewards': _rewards(model)})}",)
    return NEEDS.get(name, ())


def _rewards(model: str) -> Any:
    """Those of a model's online config whose gradient can be had."""
    return load(f"{model}/diffusion_nft")["rewards"]


def _of_generators(name: str) -> bool:
    """Whether a method takes what a generator of images or videos is seen as."""
    return bool(getattr(mm.methods, name)().kinds & {"transition", "bound"})


def with_methods(models: list[str]) -> list[list[str]]:
    """Arguments of ``mmalign rehearse`` for every method of the rooms of ``BASES`` on every model."""
    rooms = {room: sorted(filter(_of_generators, index(f"mmalign.methods.{room}"))) for room in BASES}
    return [
        [f"{model}/{base}", *changes, f"method={{use: {name}}}", *told(model, room, name)]
        for model in models
        for room, (base, *changes) in BASES.items()
        for name in rooms[room]
    ]


def main() -> int:
    """The exit code: 0 where all that were asked for went through."""
    if sys.argv[1:2] == ["--methods"]:
        chosen = with_methods(sys.argv[2:])
    else:
        patterns = sys.argv[1:] or ["*"]
        names = [str(path.relative_to(CONFIGS).with_suffix("")) for path in sorted(CONFIGS.rglob("*.yaml"))]
        chosen = [[name] for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    failed = 0
    for words in chosen:
        began = time.monotonic()
        command = [sys.executable, "-m", "mmalign", "rehearse", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
        failed += done.returncode != 0
        lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        said = lines[-1].removeprefix(f"{words[0]}: ") if lines else "no output"
        print(f"{' '.join(words)[:200]:<28}{time.monotonic() - began:6.1f} s  {said}", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} rehearsed")
    return int(failed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main())
