"""``scripts/bench``: what is compared is equal, and what is counted is counted. Nothing is timed here."""

from __future__ import annotations

import argparse
import importlib
import math
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


@pytest.mark.parametrize("lora", [True, False])
def test_guidance_through_one_branch_is_the_same_update(script: Callable[[str], Any], *, lora: bool) -> None:
    generators = script("generators")
    sides = generators.FlowGrpo("tiny", prompts=2, group=2, steps=3, lora=lora, beta=0.0)
    both = sides.gradient(lambda: sides.update(step=False))
    ours, theirs = (sides.gradient(sides.conditional(lambda run=run: run(step=False))) for run in (sides.update, sides.theirs_update))
    generators.refuse_unequal("one branch", ours, theirs)
    with pytest.raises(SystemExit, match="not the same update"):
        generators.refuse_unequal("one branch", ours, both)
    calls = generators.calls_of(sides.module, sides.conditional(sides.update))  # two of three steps; no reference
    assert (calls.with_gradient, calls.without) == (4 * 2, 4 * 2)


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


def test_scores_beside_the_rollout_are_those_behind_it(script: Callable[[str], Any]) -> None:
    overlap = script("overlap")
    model = overlap.policy()
    rollout = model.sample([f"{number} + {number + 1} =" for number in range(overlap.PROMPTS)], overlap.GROUP, torch.Generator())
    behind, beside = (overlap.sampled(overlap.Waits(rollout, 0.0), 0.0, parts, threaded=parts > 1) for parts in (1, 4))
    assert torch.equal(behind.scores.named["sleeps"], beside.scores.named["sleeps"])


def test_the_plan_has_every_number_of_cards(script: Callable[[str], Any]) -> None:
    scaling = script("scaling")
    alone, many = (scaling.line(scaling.image(), cards) for cards in (1, 64))
    assert float(alone[4].replace(",", "")) == pytest.approx(64 * float(many[4]), rel=1e-3)
    assert scaling.line(scaling.words_and_images("its shards"), 1)[2] == "does not fit"


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


def marked(*golds: tuple[int, float]) -> dict[str, Any]:
    return {"marks": [{"rows": rows, "gold": gold, "proxy": gold + 0.1, "seconds": 1.0, "spread": 0.1} for rows, gold in golds]}


def test_rows_to_a_gold_lie_on_a_line_between_two_marks(script: Callable[[str], Any]) -> None:
    page = script("league_page")
    assert page.rows_to(marked((1000, 0.6), (3000, 1.0)), 0.9, 0.5) == pytest.approx(2500)
    assert page.rows_to(marked((1000, 0.95)), 0.9, 0.5) == pytest.approx(1000 * 0.4 / 0.45)
    assert page.thousands(page.rows_to(marked((1000, 0.6), (3000, 0.8)), 0.9, 0.5)) == "never"
    assert page.fewer([1000.0, 2000.0, 4000.0], [40000.0], 48000) == "1/20.0 (1/40.0 to 1/10.0)"
    assert page.fewer([1000.0, 80000.0, math.inf], [40000.0], 99000) == "2.0 (1/40.0 to never)"
    assert page.fewer([1000.0, 2000.0, 4000.0], [40000.0, math.inf, math.inf], 48000) == "below 1/24.0"
    assert page.at_budget(marked((1000, 0.6), (3000, 0.7), (9000, 0.8)), 2500)["gold"] == 0.7


@pytest.mark.parametrize(("world", "prompts"), [("digits", 4), ("moving_digits", 1)])
def test_the_league_counts_training_and_no_evaluation(world: str, prompts: int, script: Callable[[str], Any]) -> None:
    """A step of prompts in groups of 8 of DiffusionNFT: each row in 8 steps of a rollout, and at 4 noise levels under the set that
    sampled, in preflight and in the update; that a probe asks the pipeline for its schedule is no training."""
    league = script("league")

    class Once:
        def __init__(self, meter: Any, policy: Any):
            self.meter = meter

        def at(self, step: int) -> None:
            with self.meter.paused():
                self.meter.calls.without += 10**6  # what an evaluation would add
            if step:
                raise league.Enough

    node = league.node_of(league.WORLDS[world], league.entries()["diffusion_nft"], [f"batch.prompts={prompts}"])
    assert league.run(league.WORLDS[world], node, Once, seed=0).meter.calls.rows == prompts * 8 * (8 + 3 * 4)


def test_a_world_that_nobody_ran_in_keeps_its_part_of_the_page(script: Callable[[str], Any], tmp_path: Path) -> None:
    league, page = script("league"), script("league_page")
    old = "\n## digits\n\nBudget of before\n\n| method |\n|---|\n| draft |\n"
    (tmp_path / "LEAGUE.md").write_text("# of before\n" + old, encoding="utf-8")
    page.write(tmp_path, league.WORLDS, [], published="flow_grpo", kinds={})
    assert (tmp_path / "LEAGUE.md").read_text(encoding="utf-8") == page.HEAD + old
    base = {"world": "moving_digits", "name": "flow_grpo", "kind": "base", "number": 0, "gold": 0.4, "proxy": 0.6}
    run = {"world": "moving_digits", "name": "draft", "kind": "seed", "number": 0, "changes": ["a=1"], **marked((6000, 0.5))}
    page.write(tmp_path, league.WORLDS, [base, run], published="flow_grpo", kinds={"draft": "reward_gradient"})
    text = (tmp_path / "LEAGUE.md").read_text(encoding="utf-8")
    assert page.parts(text)["digits"] == old and "| draft | reward gradient | never | 0 of 1 |" in page.parts(text)["moving_digits"]
    (tmp_path / "LEAGUE.md").write_text(text + "\n## Tried besides\n\nby hand\n", encoding="utf-8")
    page.write(tmp_path, league.WORLDS, [base, run], published="flow_grpo", kinds={"draft": "reward_gradient"})
    assert (tmp_path / "LEAGUE.md").read_text(encoding="utf-8") == text + "\n## Tried besides\n\nby hand\n"


def test_the_league_goes_on_with_what_is_missing(script: Callable[[str], Any]) -> None:
    league = script("league")
    there = {league.Job("digits", league.PUBLISHED, "base"): {"gold": 0.5}}
    there |= {league.Job("digits", "draft", "trial", n): {"changes": [f"n={n}"], **marked((500, 0.5 + 0.1 * (n == 2)))} for n in range(3)}
    assert league.following("digits", "draft", there, seeds=3, count=4) == league.Job("digits", "draft", "trial", 3)
    there[league.Job("digits", "draft", "trial", 3)] = {"changes": ["n=3"], "failed": "out of reach"}
    assert league.chosen("digits", "draft", there) == ["n=2"]
    assert league.following("digits", "draft", there, seeds=3, count=4) == league.Job("digits", "draft", "seed", 0)
    there |= {league.Job("digits", "draft", "seed", n): marked((500, 0.9 - 0.1 * n)) for n in range(3)}
    there[league.Job("digits", "draft", "memory")] = {}
    assert league.following("digits", "draft", there, seeds=3, count=4) == league.Job("digits", "draft", "seed", 3)  # they are .2 apart
    there |= {league.Job("digits", "draft", "seed", n): marked((500, 0.9)) for n in range(5)}
    assert league.following("digits", "draft", there, seeds=3, count=4) is None


def test_a_trial_is_no_better_for_being_judged_later(script: Callable[[str], Any]) -> None:
    league = script("league")
    often, seldom = marked((500, 0.6), (1000, 0.7), (4000, 0.9)), marked((1000, 0.7), (4000, 0.9))
    assert league.worth(seldom, 0.5, 4000) == pytest.approx(league.worth(often, 0.5, 4000))
