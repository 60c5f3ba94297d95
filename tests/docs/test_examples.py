"""The examples run as they stand, in a folder of their own, with fewer steps."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.processes import together

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


def started(name: str, folder: Path) -> tuple[int, str]:
    """As a user starts it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=folder, capture_output=True, text=True, env=environment)
    return done.returncode, done.stderr


def forked(name: str, folder: Path) -> tuple[int, str]:
    """As a program by itself, for which nothing is imported again: half of the time of a small one."""
    import diffusers
    import transformers  # noqa: F401

    diffusers.DiffusionPipeline  # noqa: B018  # which is imported when it is first asked for

    def act(rank: int) -> None:
        os.chdir(folder)
        runpy.run_path(f"{name}.py", run_name="__main__")

    ((code, said),) = together(1, act, folder / "forked", timeout=600.0)
    return code, said


@pytest.mark.parametrize("name", LEFT)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert "# %%\n" in text and "# %% [markdown]\n" in text
    short, changed = re.subn(r"^(STEPS|SEEDS) = \d+", lambda match: f"{match[1]} = {2 if match[1] == 'SEEDS' else 1}", text, flags=re.M)
    assert changed == 1
    (tmp_path / f"{name}.py").write_text(short, encoding="utf-8")
    run: Callable[[str, Path], tuple[int, str]] = started if name == "own_data" else forked
    code, said = run(name, tmp_path)
    assert code == 0, said[-3000:]
    assert [file for file in LEFT[name] if not (tmp_path / file).is_file()] == []
