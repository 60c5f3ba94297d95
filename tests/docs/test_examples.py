"""The examples run as they stand, in a folder of their own, with fewer steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "examples"
LEFT = {
    "align_images": ["runs/align_images/report.html", "runs/align_images/export/README.md"],
    "honest_vlm": ["runs/honest_vlm/report.html"],
    "align_text": ["runs/align_text/export/README.md"],
    "own_reward": ["runs/own_reward/report.html"],
    "own_pipeline": ["runs/own_pipeline/summary.json"],
    "own_data": ["runs/own_data/broken.jsonl"],
    "guidance_or_best_of_n": ["comparison/comparison.md"],
}
"""example -> what it leaves behind."""


def test_every_example_is_run_and_listed():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert {path.stem for path in FOLDER.glob("*.py")} == LEFT.keys() == set(re.findall(r"`(\w+)\.py`", page))


@pytest.mark.parametrize("name", LEFT)
def test_an_example_runs(name, tmp_path):
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert "# %%\n" in text and "# %% [markdown]\n" in text
    short, changed = re.subn(r"^(STEPS|SEEDS) = \d+", lambda match: f"{match[1]} = {2 if match[1] == 'SEEDS' else 1}", text, flags=re.M)
    assert changed == 1
    (tmp_path / f"{name}.py").write_text(short, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [file for file in LEFT[name] if not (tmp_path / file).is_file()] == []
