"""Runs that are killed and resumed end as the one that was left alone. All of them: ``python scripts/fuzz/kills.py``."""

from __future__ import annotations

import runpy
from pathlib import Path

from mmalign.runs import checkpoint

KILLS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz" / "kills.py"))


def test_a_few_killed_runs(capsys):
    assert KILLS["main"](["--every", "9", "--random", "2"]) == 0, capsys.readouterr().out
    assert ", 2 at random; 0 wrong" in capsys.readouterr().out


def test_the_kills_are_seen(monkeypatch, capsys):
    """Where nobody sweeps, half of a checkpoint is left beside the others."""
    monkeypatch.setattr(checkpoint, "sweep", lambda folder: None)
    assert KILLS["main"](["--every", "7", "--random", "0"]) > 0
    assert "differs in checkpoints/.step_" in capsys.readouterr().out
