"""What several processes are refused, each time in one line and by all of them: nobody waits for one that has ended."""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.distributed import forked
from mmalign.distributed.launch import launch
from mmalign.distributed.team import Processes, joined
from mmalign.records import Pair
from mmalign.runs import checkpoint
from mmalign.runs.folder import held
from mmalign.types import UserError
from tests.distributed.test_runs import refused, settings
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.helpers.processes import together
from tests.helpers.small_run import online


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def test_a_machine_that_does_not_see_the_folder_of_the_others(tmp_path: Path) -> None:
    def train(rank: int) -> None:
        own = tmp_path / str(rank)
        (own / "runs" / "run").mkdir(parents=True)
        if rank == 1:  # where a run of that name was once
            (own / "runs" / "run" / "config.yaml").write_text("steps: 1")
        os.chdir(own)
        online(Path("runs"), **settings())

    line = "run.folder: process 1 does not see what process 0 wrote in runs/run; takes a folder that all processes share"
    assert refused(train, tmp_path) == [line, line]
    assert not (tmp_path / "0" / "runs" / "run").exists() and (tmp_path / "1" / "runs" / "run" / "config.yaml").is_file()


def test_a_folder_in_which_another_run_trains(tmp_path: Path) -> None:
    def line(rank: int) -> str:
        where = f"{tmp_path / 'run'}: another process trains there; wait until it ends, or give this run another name (run.name=...)"
        return where if rank == 0 else f"process 0: {where}"

    with held(tmp_path / "run", "trains"):
        assert refused(lambda rank: online(tmp_path, **settings()), tmp_path / "fresh") == [line(0), line(1)]
    online(tmp_path, **settings(steps=1))
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with held(tmp_path / "run", "trains"):
        assert refused(lambda rank: online(tmp_path, **settings(), resume=True), tmp_path / "again") == [line(0), line(1)]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("change", [{"prompt": "another"}, {"second": "no way"}, {"strength": 0.0}, {"id": "pair x"}])
def test_a_file_of_records_that_is_another_one_on_one_machine(change: dict[str, Any], tmp_path: Path) -> None:
    records = [Pair(f"why {number} ", "yes", "no", 1.0, f"pair {number}") for number in range(4)]
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=7)

    def train(rank: int) -> None:
        own = [*records[:2], records[2]._replace(**change), records[3]] if rank else records
        settings: dict[str, Any] = {"batch": {"records": 4}, "evaluation": {"every": 9, "samples": 1}, "run": {"folder": str(tmp_path)}}
        mm.offline(policy, own, mm.methods.dpo(), steps=1, **settings)

    key = "records.pair 2: process 1 has another than process 0; takes the same files and arguments in all of them"
    for line in refused(train, tmp_path):
        assert line.removeprefix("process 0: ") == key


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    online(tmp_path, **settings(steps=1))
    (path,) = (tmp_path / "run" / "checkpoints").glob("step_*")
    tensors, state = checkpoint.load(path)
    wide = {
        name: {key: torch.cat([value, value]) if value.ndim else value for key, value in table.items()} for name, table in tensors.items()
    }
    checkpoint.save(path.parent, 1, tensors=wide, state=state)
    for line in refused(lambda rank: online(tmp_path, **settings(), resume=True), tmp_path):
        assert "got shape" in line and "takes" in line and "\n" not in line


def test_a_port_that_somebody_else_holds_and_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def join(rank: int) -> None:
        os.environ.update({"MMALIGN_TIMEOUT": "600"} if rank == 0 else {})  # it is told at once
        joined()

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        monkeypatch.setattr(forked, "held_port", lambda: nullcontext(port))
        (code, bound), (other, waited) = together(2, join, tmp_path, timeout=1.0)
    assert code == other == 2
    assert bound.startswith("processes: could not be joined (") and "address already in use" in bound
    assert f"no answer from 127.0.0.1:{port} in 1 seconds" in waited and "takes a launcher such as torchrun" in waited


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--processes: got 3, this machine has 2 GPUs; takes at most one for each"):
        launch(["train", "x"], 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # as torchrun says it to each: all of them refuse, and none waits for the third
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(UserError, match="processes: 3 of this machine, which has 2 GPUs; takes at most one for each"):
            Processes(rank, 3)


@pytest.mark.parametrize("size", ["two", "0", "-1", ""])
def test_a_launcher_that_says_no_number(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    joined.cache_clear()
    with pytest.raises(UserError, match=f"WORLD_SIZE: got '{size}', takes the number of processes"):
        joined()


def test_a_launcher_that_meant_several_and_started_one(monkeypatch: pytest.MonkeyPatch, mmalign: Any) -> None:
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)  # as accelerate launch --cpu --num_processes 2 leaves it
    code, out, err = mmalign("train", "digits/demo")
    assert (code, out) == (2, "") and err == (
        "accelerate launch: was asked for several processes (MASTER_PORT) and has started one (no WORLD_SIZE); takes accelerate launch "
        "--multi_gpu --num_processes N, also where there is no GPU, or --processes N without a launcher\n"
    )
