"""``mmalign train --processes N --ray`` on Ray's local cluster. Ray is an extra of 80 MB: where it is not installed, these say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mmalign.distributed.on_ray import Rank, launch_on_ray
from mmalign.types import UserError
from tests.distributed.test_every_method import log
from tests.distributed.test_launch import folder

__all__ = ["folder"]
RAY = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'mmalign[ray]'")


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, start_new_session=True, **pipes)


@RAY
def test_two_actors_train_as_one_process_does_and_one_of_them_speaks(folder: Path) -> None:
    train = start(folder, "-m", "mmalign", "train", "many.yaml", "--processes", "2", "--ray")
    out, err = train.communicate(timeout=300)
    assert train.returncode == 0, err
    assert out.count("finished after 3 steps") == 1 and out.count("report: ") == 1
    alone = start(folder, "-m", "mmalign", "train", "one.yaml")
    assert alone.communicate(timeout=300) and alone.returncode == 0
    losses = [[row["loss"] for row in log(folder / name) if row["phase"] == "train"] for name in ("one", "many")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9) and len(losses[0]) == 3


@RAY
def test_a_failure_in_one_actor_is_one_line_and_the_code_is_its(folder: Path) -> None:
    train = start(folder, "-m", "mmalign", "train", "many.yaml", "rewards.own.breaks=1", "--processes", "2", "--ray")
    _, err = train.communicate(timeout=300)
    assert train.returncode == 2 and "process 1: reward own: raised ZeroDivisionError: no such luck (" in err, err


def test_what_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--processes: got 0, takes 1 or more"):
        launch_on_ray(["train", "x"], 0)
    if find_spec("ray") is None:
        with pytest.raises(UserError, match="--ray: needs Ray"):
            launch_on_ray(["train", "x"], 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started this process already"):
        launch_on_ray(["train", "x"], 2)


def test_a_process_of_an_actor_says_what_it_says_and_takes_signals(tmp_path: Path) -> None:
    lost = Rank()
    assert "sees no" in str(lost.start([], {}, str(tmp_path / "elsewhere"))) and lost.heard() == ([], None)
    one = Rank()
    assert one.start(["--no-such-option"], {}, str(tmp_path)) is None
    lines = list[tuple[bool, str]]()
    while (heard := one.heard()).code is None:
        lines += heard.lines
        time.sleep(0.05)
    lines += heard.lines
    assert heard.code == 2 and any(wrong and "no-such-option" in line for wrong, line in lines)
    one.signal(signal.SIGINT)  # to nobody
