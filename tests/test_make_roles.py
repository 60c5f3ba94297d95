"""The page of roles is what the script makes, and the script counts what methods ask for."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

import mmalign as mm
from mmalign.needs import kls, refs
from mmalign.rooms import index
from mmalign.types import Behavior

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "make_roles.py"))


def test_the_page_is_current_and_has_every_method():
    page = SCRIPT["PAGE"].read_text(encoding="utf-8")
    assert page == SCRIPT["page"](), "python scripts/make_roles.py"
    assert {line.split("`")[1] for line in page.splitlines() if line.startswith("| `") and "." not in line.split("`")[1]} >= {
        *index("mmalign.methods")
    }


@pytest.mark.parametrize(
    ("name", "settings", "passes", "references", "others"),
    [
        ("dpo", {}, 4, ["ref.score"], ["reward.score"]),  # the update, and the reference once
        ("simpo", {}, 3, [], ["reward.score"]),
        ("tdpo1", {}, 5, ["ref.compare", "ref.score"], ["reward.score"]),  # whole distributions besides
        ("mdpo", {}, 8, ["ref.score"], ["reward.score"]),  # again without the image, by both
        ("ppo", {}, 5, ["ref.score"], ["critic.value", "reward.score"]),  # and values, which the advantage reads
        ("dmd2", {}, 7, ["ref.predict"], ["fake.update", "reward.gradient"]),
    ],
)
def test_calls_are_counted_by_hand(name, settings, passes, references, others):
    found = SCRIPT["roles"](getattr(mm.methods, name)(**settings))
    assert (found.passes, found.references, found.others) == (passes, references, others)


def test_each_thing_that_a_method_asks_for_is_a_call():
    method = mm.methods.simpo()
    roles = SCRIPT["roles"]
    assert roles(replace(method, needs=method.needs | {refs("teacher")})).references == ["teacher.score"]
    assert roles(replace(method, needs=method.needs | {kls("teacher")})).passes == 5
    assert "opponent.sample" in roles(replace(method, behaviors=(Behavior("opponent", {"ref": 1.0}),))).others
    assert roles(replace(method, sampled_by="previous")).others[0] == "previous.sample"
    assert roles(replace(method, survey=lambda steps, signal: signal)).passes == 4
