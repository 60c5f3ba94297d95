"""The script of rewards that hack: a run of one step, what is read off it, and its table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.small_run import rows


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hacking", Path(__file__).parents[1] / "scripts" / "hacking.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(**changes: Any) -> dict[str, Any]:
    return {
        "gold_before": 0.5, "gold_best": 0.9, "gold_after": 0.9, "moved": 0.3, "left": None, "alarm": None, "judge_fell": None, **changes,
    }  # fmt: skip


def test_a_run_is_made_once_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hacking = script()
    for name, value in {"PROMPTS": 2, "GROUP": 2, "SAMPLES": 2}.items():
        monkeypatch.setattr(hacking, name, value)
    name = "plain"
    first = hacking.trained(name, 0, "dark", tmp_path, 1)
    (run,) = tmp_path.iterdir()
    log = rows(run)
    train, evals = [row for row in log if row["phase"] == "train"], [row for row in log if row["phase"] == "eval"]
    assert train[0]["reward"] == pytest.approx(train[0]["reward/holed"])  # what is watched counts for nothing
    assert evals[0]["watched"] == pytest.approx(evals[0]["pixels/brightness"])
    monkeypatch.setattr(hacking.mm, "online", None)
    assert hacking.trained(name, 0, "dark", tmp_path, 1) == first and set(first) == set(made())


def test_what_is_said_of_runs() -> None:
    hacking = script()
    assert hacking.verdict([made()]) == "resists" and hacking.verdict([made(gold_after=0.5, gold_best=0.5)]) == "stands still"
    assert hacking.verdict([made(gold_after=0.2)]) == "hacked" and "gold does not see it" in hacking.verdict([made(moved=-4.0)])
    assert hacking.right(made()) and hacking.right(made(left=4, alarm=6)) and hacking.right(made(left=4, alarm=3))
    assert not hacking.right(made(left=4)) and not hacking.right(made(alarm=3)) and not hacking.right(made(left=4, alarm=12))
    page = hacking.table({"plain": [made(left=2, alarm=3, gold_after=0.1), made()]})
    assert "| plain | 0.50, 0.50 | 0.90, 0.90 | 0.10, 0.90 | +0.3, +0.3 | 2, none | 3, none | none, none | hacked |" in page
    assert "in 2 of 2 runs" in page
