"""What scripts/conformance.py writes, and when; what it finds is held by tests/policies/test_conformance.py."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "conformance.py"
EARLIER = {"name": "FluxPipeline", "error": "an earlier result"}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """``main`` on a folder of its own, where no class is really tried: its names, and the two files."""
    made = runpy.run_path(str(SCRIPT))["main"].__globals__
    tried: list[str] = []

    def each(names, jobs):
        tried.extend(names)
        return ({"name": name, "error": "tried", "trace": "Traceback of it"} for name in names)

    numbers, page = tmp_path / "conformance.json", tmp_path / "pipelines" / "CONFORMANCE.md"
    page.parent.mkdir()
    numbers.write_text(json.dumps([EARLIER]))
    made.update(HERE=tmp_path, NUMBERS=numbers, each=each, classes=lambda: ["FluxPipeline", "StableDiffusionPipeline"])

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["conformance.py", *words])
        made["main"]()
        return tried

    return run, numbers, page


def test_show_writes_nothing(script, capsys):
    run, numbers, page = script
    assert run("Stable*", "--show") == ["StableDiffusionPipeline"]
    assert json.loads(numbers.read_text()) == [EARLIER] and not page.exists()
    assert "'error': 'tried'" in (out := capsys.readouterr().out) and "Traceback of it" in out


def test_some_names_are_put_beside_those_of_earlier_runs(script, capsys):
    run, numbers, page = script
    assert run("Stable*", "StableDiffusionPipeline") == ["StableDiffusionPipeline"]  # once
    assert [row["error"] for row in json.loads(numbers.read_text())] == ["an earlier result", "tried"]
    assert "an earlier result" in page.read_text() and "Traceback" not in capsys.readouterr().out


def test_a_name_of_nothing_is_refused(script, capsys):
    run, numbers, page = script
    with pytest.raises(SystemExit) as stopped:
        run("Stable*", "Fluxx*")
    assert stopped.value.code == 2 and "names: got Fluxx*, which no pipeline class of diffusers" in capsys.readouterr().err
    assert json.loads(numbers.read_text()) == [EARLIER] and not page.exists()
