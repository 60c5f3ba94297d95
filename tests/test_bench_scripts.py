"""``scripts/bench``: what is compared is equal, and what is counted is counted. Nothing is timed here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
