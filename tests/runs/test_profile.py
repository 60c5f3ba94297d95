"""Where the time of a step goes: parts add up to it, whatever is inside of what; of several processes; on the page."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mmalign.report.page import render
from mmalign.report.read import read
from mmalign.runs.profile import PARTS, Profile, of_all, table
from tests.helpers.processes import together
from tests.helpers.small_run import online, rows


def test_every_moment_belongs_to_one_part() -> None:
    ticks = count(0, 10**9)  # a second from one look at the clock to the next
    profile = Profile(True, clock=lambda: next(ticks))
    profile.begin()  # 0
    with profile.part("forward"):  # 1
        with profile.part("gather"):  # 2
            pass  # 3
        with profile.part("backward"):  # 4
            pass  # 5
    # 6
    row = profile.end()  # 7
    spent = {name: row[name] for name in PARTS if row[name]}
    assert spent == {"other": 2.0, "forward": 3.0, "gather": 1.0, "backward": 1.0} and row["step_seconds"] == 7.0


def test_a_part_that_fails_is_over() -> None:
    ticks = count(0, 10**9)
    profile = Profile(True, clock=lambda: next(ticks))
    profile.begin()
    with pytest.raises(ZeroDivisionError), profile.part("forward"):
        raise ZeroDivisionError
    row = profile.end()
    assert (row["forward"], row["other"], row["step_seconds"]) == (1.0, 2.0, 3.0)


def test_nobody_looks_at_the_clock_where_nothing_is_wanted() -> None:
    profile = Profile(clock=lambda: pytest.fail("looked"))
    profile.begin()
    with profile.part("forward"):
        pass
    assert profile.end() == {}


def test_several_processes_as_one() -> None:
    one = dict.fromkeys(PARTS, 0.0) | {"forward": 4.0, "gather": 2.0, "step_seconds": 6.0, "processor": 3.0, "memory": 5.0}
    two = dict.fromkeys(PARTS, 0.0) | {"forward": 1.0, "gather": 5.0, "step_seconds": 6.0, "processor": 1.0, "memory": 7.0}
    row = of_all([one, two])
    assert (row["forward"], row["gather"], row["step_seconds"], row["processor"], row["memory"]) == (2.5, 3.5, 6.0, 2.0, 7.0)
    assert (row["slowest"], row["slowest_work"], row["least_work"]) == (0.0, 4.0, 1.0)
    assert of_all([one]) == one and of_all([{}]) == {}
    assert table([one, one]) == [("forward", 4.0, 4 / 6), ("gather", 2.0, 2 / 6)] and table([]) == []


def profiled(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "profile"]


def test_a_run_says_where_its_time_went_and_is_otherwise_the_same(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 4, "evaluation": {"every": 2, "samples": 2}}
    plain = online(tmp_path / "plain", run={"checkpoint_every": 2}, **settings)
    online(tmp_path / "parts", run={"checkpoint_every": 2}, **{**settings, "steps": 2})
    run = online(tmp_path / "parts", run={"checkpoint_every": 2, "profile": True}, resume=True, **settings)
    assert [row for row in rows(run.path) if row["phase"] != "profile"] == rows(plain.path)
    steps = profiled(run.path)
    assert [row["step"] for row in steps] == [3, 4]
    for row in steps:
        assert sum(row[name] for name in PARTS) == pytest.approx(row["step_seconds"], abs=1e-9)
        assert all(row[name] > 0 for name in ("rollout", "references", "rewards", "forward", "backward", "optimizer", "other", "memory"))
    assert steps[1]["evaluation"] > 0 == steps[0]["evaluation"] and steps[1]["checkpoint"] > 0 == steps[0]["checkpoint"]
    page = render(read(run.path))
    assert "<h3>Where the time goes</h3>" in page and "What a step costs" in page and "of processor time" in page
    assert "What a step costs" not in render(read(plain.path))


def test_processes_wait_for_the_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    train = lambda rank: online(tmp_path, steps=2, batch={"prompts": 2}, run={"profile": True})  # noqa: E731
    assert together(2, train, tmp_path / "processes") == [(0, "")] * 2
    for row in profiled(tmp_path / "run"):
        assert sum(row[name] for name in PARTS) == pytest.approx(row["step_seconds"], abs=1e-9)
        assert row["gather"] > 0 and row["slowest"] in (0, 1) and row["slowest_work"] >= row["least_work"] > 0
    assert "was the slowest in" in render(read(tmp_path / "run"))
