"""Folders of runs that were damaged, page and resume: they make do or say so in one line. All of them: ``python scripts/fuzz/runs.py``."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from mmalign.report import read as reading
from mmalign.runs import checkpoint

FUZZ = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz" / "runs.py"))


@pytest.mark.parametrize("seed", [11, 12])
def test_a_few_damaged_runs(seed, capsys):
    assert FUZZ["main"](["--count", "20", "--seed", str(seed)]) == 0, capsys.readouterr().out
    counts = capsys.readouterr().out
    assert "report ok" in counts and "resume ok" in counts and "resume refused" in counts and "FOREIGN" not in counts


def test_the_fuzzer_sees_what_it_looks_for(monkeypatch, capsys):
    """Readers that let errors through, and a resume from a checkpoint that was changed."""
    monkeypatch.setattr(reading, "_text", lambda path, notes: path.read_text())
    monkeypatch.setattr(checkpoint, "damage", lambda path, *some: None)
    assert FUZZ["main"](["--count", "40", "--seed", "11"]) > 0
    out = capsys.readouterr().out
    assert "report FOREIGN" in out and "resume FOREIGN" in out
