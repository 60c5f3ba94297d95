"""``scripts/faults``: what it calls mended was tried, and what prints something else is seen."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "faults"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, and the files beside it, as its own process would import them."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    before = set(sys.modules)
    yield importlib.import_module("again")
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")) or name == "own":
            del sys.modules[name]


def test_every_kind_is_tried_and_by_what_is_printed(faults: Any) -> None:
    assert {kind for kind, *_ in faults.FAULTS} == set(range(1, 26))
    assert len({(kind, what) for kind, what, *_ in faults.FAULTS}) == len(faults.FAULTS) > 180
    rows = {what: (shows, act) for _, what, shows, act in faults.FAULTS}
    shows, act = rows["gold x^2+1, completion 1"]
    command, line, _, fine = faults.tried(shows, act)
    assert command.startswith("mm.rewards.math_answer()") and line == "0.0" and fine


def test_other_lines_and_tracebacks_are_wrong(faults: Any) -> None:
    def breaks(user: Any) -> str:
        return str(user.python("x", lambda: {}["no such key"]))

    assert faults.tried("there are no such words", lambda user: user.mmalign("explain", "no_such_name"))[3] is False
    _, line, printed, fine = faults.tried("KeyError", breaks)
    assert (line, fine) == ("KeyError: 'no such key'", False) and "Traceback" in printed
