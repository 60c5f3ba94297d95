"""``mmalign train --processes``, ``torchrun`` and its agents, as a user starts them; fresh interpreters only where they prove something."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmalign.distributed.forked import LAUNCHED
from mmalign.distributed.launch import HANDED_ON, held_port, launch
from mmalign.distributed.team import joined
from mmalign.types import UserError
from tests.distributed.test_commands import command, ended
from tests.distributed.test_every_method import log
from tests.helpers.processes import together

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
policy: {use: launched.policy}
method: {use: flow_grpo}
prompts: [a, b, c, d]
rewards: {own: {use: launched.reward}}
steps: 3
batch: {prompts: 4, group: 4}
evaluation: {every: 50, samples: 2}
run: {name: run, folder: FOLDER, trackers: []}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "launched.py").write_text(MODULE)
    for name in ("one", "many"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("FOLDER", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "launched", raising=False)
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    return tmp_path


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in log(folder) if row["phase"] == "train"]


def test_it_trains_as_one_process_does_until_ctrl_c_reaches_all_of_them_once(folder: Path, mmalign: Any) -> None:
    words = ["-m", "mmalign", "train", "many.yaml", "steps=5000", "rewards.own.seconds=0.05", "--processes", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    train = subprocess.Popen([sys.executable, *words], env=environment, start_new_session=True, **pipes)
    metrics = folder / "many" / "run" / "metrics.jsonl"
    while train.poll() is None and not (metrics.is_file() and metrics.read_text().count("train") >= 2):
        time.sleep(0.1)
    train.send_signal(signal.SIGINT)
    out, err = train.communicate(timeout=300)
    assert train.returncode == 130 and out.count("continue with --resume") == 1, err
    assert out.count("report: ") == 1 and err.count("imports code from outside") == err.count("finishing this step") == 1
    many = losses(folder / "many")
    assert (folder / "many" / "run" / "checkpoints" / f"step_{len(many):06d}").is_dir()
    assert mmalign("train", "one.yaml", f"steps={len(many)}").code == 0
    assert losses(folder / "one") == pytest.approx(many, rel=1e-9) and len(many) >= 2


def test_a_failure_in_one_of_them_is_one_line(folder: Path) -> None:
    (main, _, err), (code, out, silence) = ended(folder, 2, "train", "many.yaml", "rewards.own.breaks=1")
    assert (main, code, out, silence) == (2, 2, "", "")
    (line,) = [line for line in err.splitlines() if "imports code" not in line]
    assert line.startswith("process 1: reward own: raised ZeroDivisionError: no such luck (")
    assert not (folder / "many" / "run").exists()


@contextmanager
def handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_port_by_which_they_find_each_other_is_given_to_nobody_else(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        with socket.socket() as other, pytest.raises(OSError, match="already in use"):
            other.bind(("", int(os.environ["MASTER_PORT"])))
        assert joined().tell(rank) == [0, 1]

    assert together(2, act, tmp_path) == [(0, ""), (0, "")]


def test_a_signal_that_comes_while_processes_are_started_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who started them would be gone, and they would go on."""
    from torch.distributed.elastic import multiprocessing

    start = multiprocessing.start_processes

    def signalled(*given: Any, **more: Any) -> Any:
        started = start(*given, **{**more, "args": dict.fromkeys(more["args"], ("-c", "import time; time.sleep(600)"))})
        signal.raise_signal(signal.SIGTERM)
        return started

    monkeypatch.setattr(multiprocessing, "start_processes", signalled)
    with handlers_kept():
        assert launch(["train"], 2) == 128 + signal.SIGTERM


def test_what_the_launcher_ends_with_is_what_a_process_ended_with(monkeypatch: pytest.MonkeyPatch) -> None:
    with handlers_kept():
        assert launch(["--version"], 2) == 0  # of processes that import no torch
        assert launch(["no-such-command"], 2) == 2
    with pytest.raises(UserError, match="--processes: got 0, takes 1 or more"):
        launch(["train", "x"], 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="a launcher has started this process already"):
        launch(["train", "x"], 2)


def of_an_agent(words: tuple[str, ...]) -> None:
    """What torchrun starts, in a process that it has forked."""
    try:
        command(*words)
    except SystemExit as error:
        if error.code:
            os._exit(int(error.code))


def test_two_agents_of_torchrun_are_one_run(folder: Path, mmalign: Any) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def agents(*words: str) -> list[tuple[int, str]]:
        """``torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT -m mmalign WORDS``, twice."""

        def agent(node: int) -> None:
            for name in LAUNCHED:
                del os.environ[name]
            where = {"rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{port}", "run_id": "mmalign", "local_addr": "localhost"}
            config = LaunchConfig(2, 2, 2, max_restarts=0, monitor_interval=0.05, start_method="fork", **where)  # type: ignore[arg-type]
            elastic_launch(config, of_an_agent)(words)

        with held_port() as port:
            return together(2, agent, folder / "agents")

    assert mmalign("train", "one.yaml").code == 0
    assert agents("train", "many.yaml") == [(0, ""), (0, "")], [path.read_text() for path in folder.glob("err_*.txt")]
    assert losses(folder / "one") == pytest.approx(losses(folder / "many"), rel=1e-9) and len(losses(folder / "many")) == 3
    lines = [(folder / f"out_{rank}.txt").read_text() for rank in range(4)]
    assert lines[0].count("finished after 3 steps") == 1 and lines[1:] == ["", "", ""]
