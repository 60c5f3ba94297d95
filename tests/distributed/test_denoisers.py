"""Methods of real denoisers on two processes, which hold the whole model or its shards, take the steps that they take on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # these three here, so that no forked process has to import them again
import torch.distributed.fsdp
import torch.distributed.tensor

import mmalign as mm
from mmalign.samplers import kernels
from mmalign.training.evaluations.evaluation import Results
from mmalign.worlds.digits.base import untrained
from tests.distributed.test_every_method import METHODS, ORACLES, differences, method_of
from tests.helpers.processes import together

CLOSE = {"rtol": 3e-4, "atol": 3e-5}
"""Float32 throughout: latents of 3 steps, each some 20 layers of roundings of 6e-8, whose sums are of other batches; squared in the
losses of the forward process, and carried back through all steps by the gradients of rewards. AdamW's eps is 1e-3, so that it makes no
more of a gradient's rounding than of the gradient."""

FAMILIES = ("reward_gradient", "forward_process", "distillation")
OTHERS = ("diffusion_opd", "diffusion_dpo", "flow_dpo")  # of a teacher, and of records: test_reference_models.py, test_runs.py
NAMES = [
    name for name in ORACLES
    if name in METHODS and name not in OTHERS and any(f".{family}." in METHODS[name].__module__ for family in FAMILIES)
    and method_of(name).kinds & {"bound", "transition"}
]  # fmt: skip
WAYS = {"whole": {}, "cut": {"devices": {"place": "fsdp2"}}}


def bright(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return (outputs.double() * torch.linspace(0, 1, outputs[0].numel()).view(outputs[0].shape)).flatten(1).sum(1)


def shaken(pipe: Any) -> Any:
    """Blocks begin with gates of 0, through which no gradient reaches them."""
    with torch.no_grad():
        for number, parameter in enumerate(pipe.transformer.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return pipe


def policies() -> dict[str, Any]:
    kernel = kernels.flow_sde(noise_level=2**0.5)
    own = lambda **more: mm.policies.diffusers(shaken(untrained()), device="cpu", schedule={"steps": 3, **more})  # noqa: E731
    return {"bound": mm.policies.forward(own()), "transition": own(kernel=kernel)}


def train(name: str, policy: Any, folder: Path, **more: Any) -> None:
    method = method_of(name)
    rewards = {"bright": bright, "dark": lambda outputs, prompts: -bright(outputs, prompts) / 2}
    mm.online(
        policy, ["a 3", "a 5", "a 7"], rewards, method, steps=1, batch={"prompts": 3, "group": 4, "micro_rows": 4},
        optimizer=mm.adamw(rate=1e-3, eps=1e-3), evaluation={"every": 9, "samples": 1, "prompts": ["a 3", "a 5"]},
        run={"folder": str(folder), "name": "run", "trackers": ()}, **more,
    )  # fmt: skip


def test_they_are_the_steps_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    monkeypatch.setattr("mmalign.training.journal.Journal.once", lambda *given: None)
    monkeypatch.setattr("mmalign.training.journal.evaluate", lambda *given, **more: Results({}, None))
    made = policies()
    start = {kind: {key: value.clone() for key, value in policy.sets.tables()["trained"].items()} for kind, policy in made.items()}

    def all_of_them(where: str, **more: Any) -> None:
        for name in NAMES:
            kind = "bound" if "bound" in method_of(name).kinds else "transition"
            made[kind].sets.sets.clear()
            made[kind].sets.load({"trained": start[kind], "ref": start[kind]})
            train(name, made[kind], tmp_path / where / name, **more)

    all_of_them("one")
    for where, more in WAYS.items():
        ended = together(2, lambda rank: all_of_them(where, **more), tmp_path / "processes")  # noqa: B023 (done at once)
        assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
    odd = {f"{where} {name}": differences(tmp_path / "one" / name, tmp_path / where / name, CLOSE) for where in WAYS for name in NAMES}
    assert not any(odd.values()), json.dumps({name: lines[:4] for name, lines in odd.items() if lines}, indent=1)
    assert {METHODS[name].__module__.split(".")[2] for name in NAMES} == set(FAMILIES)
