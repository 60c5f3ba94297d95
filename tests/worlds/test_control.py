"""The planner of motions: what it is asked for, what it may not look at, and how near it comes in its world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.types import Level, UserError
from mmalign.worlds.control.planner import AttributeModel, Planner, area_under_errors, followed, labelled, places_among
from mmalign.worlds.gaussian import vp_levels

STEPS, SIZE, COUNT = 16, 2, 3


@pytest.fixture(scope="module")
def untrained() -> tuple[Planner, AttributeModel, torch.Tensor]:
    torch.manual_seed(0)
    planner, judge = Planner(STEPS, SIZE, COUNT, width=16), AttributeModel(STEPS, SIZE, COUNT, width=16)
    motions = mm.worlds.runner().record(50, torch.Generator().manual_seed(0))
    planner.mean, planner.scale = motions.flatten(1).mean(0), motions.flatten(1).std(0).clamp(min=1e-3)
    judge.places = judge.scores(motions).detach().sort(0).values
    return planner, judge, motions


def test_attributes_are_what_they_are_called() -> None:
    world = mm.worlds.runner(horizon=4, noise=0.0, most=0.5)
    motions = torch.tensor([[[0.0, 1.0], [0.2, 2.0], [0.4, 1.0], [0.8, 2.0], [0.8, 1.0]]])
    assert world.measure(motions)[0].tolist() == pytest.approx([0.2, 1.4, 0.3**0.5])
    ran = followed(world, motions, torch.Generator())
    assert ran[0, :, 0].tolist() == pytest.approx([0.0, 0.2, 0.4, 0.8, 0.8])  # slow enough to be followed
    assert ran[0, :, 1].tolist() == pytest.approx([1.0, 1.5, 1.0, 1.5, 1.0])  # no step is higher than most
    recorded = mm.worlds.runner().record(300, torch.Generator().manual_seed(0))
    pairs, wins = labelled(mm.worlds.runner(), recorded, count=2000, temperature=0.01, rng=torch.Generator().manual_seed(1))
    measured = mm.worlds.runner().measure(recorded)
    assert float(((measured[pairs[:, 0]] > measured[pairs[:, 1]]) == wins.bool()).float().mean()) > 0.98


def test_strengths_are_places_and_the_area_is_that_under_the_distribution_of_errors() -> None:
    among = torch.tensor([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]])
    assert places_among(among, torch.tensor([[0.0, 9.0], [2.5, 5.5]])).tolist() == [[0.0, 1.0], [0.5, 0.25]]
    errors = torch.rand(50, generator=torch.Generator().manual_seed(0))
    at = torch.linspace(0, 1, 20001)
    below = (errors[:, None] <= at).double().mean(0)
    assert area_under_errors(errors) == pytest.approx(float(torch.trapezoid(below, at.double())), abs=1e-4)


def test_a_step_of_guidance_by_hand(untrained: tuple[Planner, AttributeModel, torch.Tensor]) -> None:
    """One denoising step ends at the clean motion that is guided: (1 + w) of what is asked less w of what nothing is asked of."""
    planner, judge, motions = untrained
    wanted, mask = torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    plan = planner.plan(motions[:1, 0], wanted, mask, judge, candidates=1, guidance=2.0, denoising=1, seed=3)
    noise = torch.randn(1, STEPS * SIZE, generator=torch.Generator().manual_seed(3))
    level = Level(*(one[0].float() for one in vp_levels(1)))
    asked, free = planner(noise, level, wanted, mask), planner(noise, level, wanted, 0 * mask)
    by_hand = ((3 * asked - 2 * free) * planner.scale + planner.mean).view(1, STEPS, SIZE)
    torch.testing.assert_close(plan[:, 1:], by_hand[:, 1:].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(plan[:, 0], motions[:1, 0], rtol=0, atol=1e-6)  # every plan begins where one is


def test_what_is_masked_is_not_looked_at_and_the_nearest_plan_is_taken(untrained: tuple[Planner, AttributeModel, torch.Tensor]) -> None:
    planner, judge, motions = untrained
    wanted, mask = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([[1.0, 0.0, 1.0]]).expand(4, 3)
    other = wanted.clone()
    other[:, 1] = 1 - other[:, 1]
    given = {"candidates": 6, "seed": 5}
    plans = planner.plan(motions[:4, 0], wanted, mask, judge, **given)
    assert torch.equal(plans, planner.plan(motions[:4, 0], other, mask, judge, **given))
    assert not torch.equal(plans, planner.plan(motions[:4, 0], 1 - wanted, mask, judge, **given))
    away = lambda some: float((((judge.strengths(some) - wanted[0]) * mask[0]) ** 2).sum())  # noqa: E731
    chosen = planner.plan(motions[:1, 0], wanted[:1], mask[:1], judge, **given)
    drawn = planner.plan(motions[:1, 0].expand(6, 2), wanted[:1].expand(6, 3), mask[:1].expand(6, 3), judge, candidates=1, seed=5)
    assert away(chosen) == pytest.approx(min(away(one[None]) for one in drawn), abs=1e-6)


def test_a_trained_planner_comes_nearer_to_what_was_asked(tmp_path: Path) -> None:
    out = str(tmp_path / "motions.json")
    told = mm.commands.align_planner(mm.worlds.runner(), out=out, motions=500, judgements=2000, iterations=150, targets=100)
    assert told["error"] < 0.8 * told["error_unasked"] and told["error_planned"] < told["error_first"] + 0.02
    rows = json.loads(Path(out).read_text())["targets"]
    errors = [abs(a - b) for row in rows for a, b, asked in zip(row["wanted"], row["reached"], row["mask"], strict=True) if asked]
    assert sum(errors) / len(errors) == pytest.approx(told["error"], abs=1e-6) and all(any(row["mask"]) for row in rows)
    with pytest.raises(UserError, match="there already"):
        mm.commands.align_planner(mm.worlds.runner(), out=out)
