"""``mmalign train --processes`` and ``torchrun`` as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmalign.distributed.launch import launch
from mmalign.types import UserError
from tests.distributed.test_every_method import log

MODULE = """
import os, time, torch
from mmalign.samplers import kernels
from mmalign.worlds import gaussian

def policy():
    world = gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5])
    return gaussian.GaussianPolicy(world, gaussian.flow_levels(3), kernel=kernels.flow_sde())

def reward(seconds: float = 0.0, breaks: int = -1):
    def score(outputs, prompts):
        time.sleep(seconds)
        if int(os.environ.get("RANK", "0")) == breaks:
            raise ZeroDivisionError("no such luck")
        return outputs[:, 0]
    return score
"""
CONFIG = """
use: online
policy: {use: mine.policy}
method: {use: flow_grpo}
prompts: [a, b, c]
rewards: {own: {use: mine.reward}}
steps: 3
batch: {prompts: 3, group: 4}
evaluation: {every: 50, samples: 2}
run: {name: run, folder: FOLDER, trackers: []}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    for name in ("one", "many"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("FOLDER", name))
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_trains_as_one_process_does_and_one_of_them_speaks(folder: Path) -> None:
    train = start(folder, "-m", "mmalign", "train", "many.yaml", "--processes", "2")
    out, err = train.communicate(timeout=300)
    assert train.returncode == 0, err
    assert out.count("finished after 3 steps") == 1 and out.count("report: ") == 1 and err.count("imports code from outside") == 1
    alone = start(folder, "-m", "mmalign", "train", "one.yaml")
    assert alone.communicate(timeout=300) and alone.returncode == 0
    losses = [[row["loss"] for row in log(folder / name) if row["phase"] == "train"] for name in ("one", "many")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and len(losses[0]) == 3
    again = start(folder, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mmalign", "train", "many.yaml")
    out, err = again.communicate(timeout=300)
    assert again.returncode != 0 and err.count("many/run exists: resume it") == 1


def test_a_failure_in_one_of_them_is_one_line(folder: Path) -> None:
    train = start(folder, "-m", "mmalign", "train", "many.yaml", "rewards.own.breaks=1", "--processes", "2")
    _, err = train.communicate(timeout=300)
    lines = [line for line in err.splitlines() if "imports code" not in line and "warn" not in line.lower()]
    assert train.returncode == 2 and lines == ["process 1: reward own: raised ZeroDivisionError: no such luck"], err
    assert not (folder / "many" / "run").exists()


def test_ctrl_c_reaches_all_of_them_once(folder: Path) -> None:
    train = start(folder, "-m", "mmalign", "train", "many.yaml", "steps=5000", "rewards.own.seconds=0.05", "--processes", "2")
    metrics = folder / "many" / "run" / "metrics.jsonl"
    while train.poll() is None and not (metrics.is_file() and metrics.read_text().count("train") >= 2):
        time.sleep(0.1)
    train.send_signal(signal.SIGINT)
    out, err = train.communicate(timeout=300)
    assert train.returncode == 130 and "continue with --resume" in out, err
    steps = [row["step"] for row in log(folder / "many") if row["phase"] == "train"]
    assert (folder / "many" / "run" / "checkpoints" / f"step_{steps[-1]:06d}").is_dir()


def test_what_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--processes: got 0, takes 1 or more"):
        launch(["train", "x"], 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started this process already"):
        launch(["train", "x"], 2)
