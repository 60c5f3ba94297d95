"""The configs of the text world are those that the script makes, but for those written by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_text_configs.py"


def test_the_files_are_what_the_script_makes():
    made = runpy.run_path(str(SCRIPT))
    there = {file.stem: file.read_text(encoding="utf-8") for file in made["FOLDER"].glob("*.yaml")}
    assert there.keys() - made["BY_HAND"] == made["texts"]().keys() and there.keys() >= made["BY_HAND"]
    for name, text in made["texts"]().items():
        assert there[name] == text, name
