"""``scripts/bench``: what is compared is equal, and what is counted is counted. Nothing is timed here."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "scripts" / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """A script by its name, with the files beside it, as its own process would import them."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_flow_grpos_order_of_work_is_the_same_update(script: Callable[[str], Any]) -> None:
    generators = script("generators")
    sides = generators.FlowGrpo("tiny", prompts=2, group=2, steps=3)
    ours, theirs = (sides.gradient(lambda run=run: run(step=False)) for run in (sides.update, sides.theirs_update))
    generators.refuse_unequal("flow_grpo", ours, theirs)
    with pytest.raises(SystemExit, match="not the same update"):
        generators.refuse_unequal("flow_grpo", ours, (theirs[0], 1.001 * theirs[1]))
    for run in (sides.update, sides.theirs_update):  # both branches of guidance; two of three steps are trained
        calls = generators.calls_of(sides.module, run)
        assert (calls.with_gradient, calls.without) == (2 * 4 * 2, 2 * 4 * 2)
    for run in (sides.sampled, sides.theirs_rollout):
        calls = generators.calls_of(sides.module, run)
        assert (calls.with_gradient, calls.without) == (0, 2 * 4 * 3)


def test_diffusers_dpo_is_the_same_update(script: Callable[[str], Any]) -> None:
    generators = script("generators")
    sides = generators.DiffusersDpo((32, 64), pairs=2)
    ours, theirs = (sides.gradient(lambda run=run: run(step=False)) for run in (sides.update, sides.theirs_update))
    generators.refuse_unequal("diffusers' DPO", ours, theirs)
    for run in (sides.update, sides.theirs_update):
        calls = generators.calls_of(sides.module, run)
        assert (calls.with_gradient, calls.without) == (4, 4)


def test_memory_of_an_update_does_not_grow_with_denoising_steps(script: Callable[[str], Any]) -> None:
    growth = script("growth")
    few, many = (growth.sd3_of(steps=steps) for steps in (3, 6))
    assert many.memory < 1.05 * few.memory and many.update > 2.2 * few.update
    with pytest.raises(SystemExit, match=r"x: update grows with an exponent of 2\.00, and nothing says why"):
        growth.rows_of("x", growth.Axis((2, 4), lambda size: growth.Cost(0, size**2, 0)))


@pytest.mark.parametrize("name", ["sd35-medium", "flux", "wan21-14b", "qwen25-vl-7b"])
def test_large_shapes_with_two_layers(name: str, script: Callable[[str], Any]) -> None:
    gpu = script("gpu")
    settings = {"device": "cpu", "dtype": "bfloat16", "steps": 2, "rows": 2, "micro_rows": 2, "rounds": 1, "tokens": 3, "peak": 1.0}
    measured = gpu.one(name, argparse.Namespace(**settings, tiny=True, compile=False))
    assert measured["update_flop"] > 0 and measured["rollout_flop"] > 0 and measured["update_bytes"] > 0
    assert measured["things"] == (2 if name in gpu.GENERATORS else 6)


def test_the_plan_has_every_number_of_cards(script: Callable[[str], Any]) -> None:
    scaling = script("scaling")
    alone, many = (scaling.line(scaling.image(), cards) for cards in (1, 64))
    assert float(alone[4].replace(",", "")) == pytest.approx(64 * float(many[4]), rel=1e-3)
    assert scaling.line(scaling.words_and_images(), 1)[2] == "does not fit"


def test_a_floor_notes_products_forwards_and_backwards(script: Callable[[str], Any]) -> None:
    floors = script("floors")
    layer, products = torch.nn.Linear(8, 4), floors.Products()
    with products:
        layer(torch.randn(3, 8, requires_grad=True)).tanh().sum().backward()
    shapes = [tuple(item.shape for item in inputs[0] if isinstance(item, floors.Seen)) for _, inputs in products.calls.elements()]
    assert sorted(shapes, key=str) == sorted([((4,), (3, 8), (8, 4)), ((3, 4), (4, 8)), ((4, 3), (3, 8))], key=str)
    assert products.seconds() > 0
    assert floors._is_product("aten::addmm") and not floors._is_product("aten::tanh")


def test_a_benchmark_that_fails_is_named_and_the_others_run(
    script: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    every = script("all")
    (tmp_path / "bad.py").write_text("import sys\nsys.exit('no such model')\n", encoding="utf-8")
    (tmp_path / "good.py").write_text("print('| a | 1 |')\n", encoding="utf-8")
    monkeypatch.setattr(every, "FOLDER", tmp_path)
    monkeypatch.setattr(every, "SCRIPTS", {"bad": [], "good": []})
    assert every.main(["bad", "good"], tmp_path / "page.md") == 1
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "**bad ended with 1: no such model**" in page and "| a | 1 |" in page and "| a | 1 |" in capsys.readouterr().out
