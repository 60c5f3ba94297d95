"""``scripts/rehearse.py``: what it asks for, what it keeps, and the page that it writes."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts import rehearse

PAGE = Path(__file__).parents[1] / "configs" / "REHEARSED.md"


def test_the_page_has_a_row_for_every_method_that_generators_learn_by() -> None:
    rows = re.findall(r"^\| `(\w+/\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [f"{room}/{name}" for room, name in rehearse.methods()]
    assert "not rehearsed" not in PAGE.read_text(encoding="utf-8")


def test_a_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the results hold is not asked again; a method that was refused says so in its cell, and in the exit code."""
    asked = [rehearse.Asked((name,), "sd35_medium", f"room/{name}") for name in ("a", "b", "c")]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(rehearse.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(rehearse, "with_methods", lambda models: asked)
    monkeypatch.setattr(rehearse, "rehearsal_config", lambda node: None)
    results, page, seen = tmp_path / "results.jsonl", tmp_path / "page.md", list[str]()
    results.write_text(json.dumps(asdict(rehearse.Outcome(("a",), "", "every phase of 7", 3.0))) + "\n", encoding="utf-8")

    def rehearsed(one: rehearse.Asked) -> rehearse.Outcome:
        seen.extend(one.words)
        return rehearse.Outcome(one.words, "update" if one.words == ("c",) else "", "no row | has a signal", 2.0)

    monkeypatch.setattr(rehearse, "rehearsed", rehearsed)
    words = ["rehearse.py", "--methods", "sd35_medium", "--results", str(results), "--page", str(page)]
    for expected in (["b", "c"], ["b", "c"]):
        monkeypatch.setattr(sys, "argv", words)
        assert rehearse.main() == 1 and seen == expected
    text = page.read_text(encoding="utf-8")
    assert "2 of 3 ran." in text and "| `room/a` | ran, 3 s |" in text and "| `room/c` | update: no row \\| has a signal |" in text
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 3 rehearsed"


def test_what_cannot_be_loaded_is_a_line(tmp_path: Path) -> None:
    made = rehearse.rehearsed(rehearse.Asked((str(tmp_path / "nowhere.yaml"),)))
    assert made.failed == "load" and "nowhere" in made.line
