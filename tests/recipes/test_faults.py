"""What goes wrong beside the run: a full disk, a dead tracker, a server that is gone. What was saved stays valid, and the run that goes on
ends as the one that nothing befell. A process that dies or stalls: tests/distributed/test_runs.py; numbers that are not finite:
tests/training/test_not_finite.py; files of data that cannot be read: tests/data/test_damaged_files.py."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.distributed import forked
from mmalign.runs import checkpoint, log
from mmalign.selftest.trials import contents, differing
from mmalign.types import UserError
from tests.helpers import small_run

EVERY = {"checkpoint_every": 2}


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, str]:
    return contents(small_run.online(tmp_path / "whole", run=EVERY).path)


def others(run: Path, whole: dict[str, str]) -> list[str]:
    """Files that are not those of the whole run, but for the config, where the folder's name stands."""
    return [name for name in differing(run, whole) if name != "config.yaml"]


def full(*given: Any, **more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def test_no_room_for_a_checkpoint(tmp_path: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        saves, own = [], checkpoint._write_tensors

        def write(path: Path, *given: Any) -> None:
            saves.append(path)
            if len(saves) > 5:
                full()
            own(path, *given)

        patch.setattr(checkpoint, "_write_tensors", write)
        with pytest.raises(UserError, match=r"step 4: .* cannot be written \(.*No space left.*\); takes room"):
            small_run.online(tmp_path / "parts", run=EVERY)
    out = capsys.readouterr().out
    assert "step 4 could not be saved: [Errno 28] No space left on device" in out and "step 2 is saved, continue with --resume" in out
    assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == 2
    assert not others(small_run.online(tmp_path / "parts", run=EVERY, resume=True).path, whole)


def test_no_room_for_the_log(tmp_path: Path, whole: dict[str, str]) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.lines = file, 0

        def write(self, line: str) -> int:
            self.lines += 1
            if self.lines == 4:
                self.file.write(line[:20])  # what there was room for
                self.file.flush()
                full()
            return int(self.file.write(line))

        def flush(self) -> None:
            self.file.flush()

        def close(self) -> None:
            self.file.close()

    with pytest.MonkeyPatch.context() as patch:
        own = log.Log.__init__

        def opened(self: Any, *given: Any, **more: Any) -> None:
            own(self, *given, **more)
            self._file = Full(self._file)

        patch.setattr(log.Log, "__init__", opened)
        with pytest.raises(UserError, match=r"step 3: .* cannot be written"):
            small_run.online(tmp_path / "parts", run=EVERY)
    assert not others(small_run.online(tmp_path / "parts", run=EVERY, resume=True).path, whole)


def test_a_limit_on_files_is_no_other_error(tmp_path: Path) -> None:
    """The system's own, of a checkpoint that is larger than files may be; the one before stays."""

    def save(rank: int) -> None:
        checkpoint.save(tmp_path / "run", 1, tensors={"trained": {"a": torch.zeros(10)}}, state={})
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(OSError) as error:
            checkpoint.save(tmp_path / "run", 2, tensors={"trained": {"a": torch.zeros(100_000)}}, state={})
        assert error.value.errno == errno.EFBIG

    assert forked.wait(forked.fork(1, save, tmp_path)) == [0], forked.words(tmp_path, 1)
    assert checkpoint.newest_step(tmp_path / "run") == 1 and [path.name for path in (tmp_path / "run").iterdir()] == ["step_000001"]


def test_a_dead_tracker_costs_a_line(tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    class Dead:
        def log(self, numbers: dict[str, float], step: int) -> None:
            if step == 3:
                raise ConnectionError("nobody there")

        def store_init_configuration(self, settings: dict[str, Any]) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setattr(log, "_start", lambda *given: Dead())
    run = small_run.online(tmp_path / "parts", run={**EVERY, "trackers": ("tensorboard",)})
    assert not others(run.path, whole)
    assert capsys.readouterr().out.count("trackers: tensorboard failed, going on without it (ConnectionError: nobody there)") == 1


def test_a_reward_that_is_gone_ends_the_run_and_the_resumed_one_is_the_whole(tmp_path: Path, whole: dict[str, str]) -> None:
    calls: list[int] = []

    def gone(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise UserError("http://127.0.0.1:8000: cannot be reached")
        return outputs @ small_run.LINEAR

    with pytest.raises(UserError, match=r"reward linear: http://127\.0\.0\.1:8000: cannot be reached"):
        small_run.online(tmp_path / "parts", run=EVERY, rewards={"linear": gone})
    assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == 3  # of every second step, and the one before it failed
    assert not others(small_run.online(tmp_path / "parts", run=EVERY, rewards={"linear": gone}, resume=True).path, whole)


@pytest.mark.parametrize("fails", [7, 9])
def test_a_run_that_was_saved_between_its_checkpoints_keeps_those_of_the_whole(fails: int, tmp_path: Path) -> None:
    """Of an evaluation that failed at a checkpoint's step, and of a step after one between two."""
    calls: list[int] = []

    def reward(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == fails:
            raise UserError("gone")
        return outputs @ small_run.LINEAR

    settings: dict[str, Any] = {"run": EVERY, "rewards": {"linear": reward}, "steps": 6, "evaluation": {"every": 2, "samples": 2}}
    calls += [1] * 100
    whole = contents(small_run.online(tmp_path / "whole", **settings).path)
    calls.clear()
    with pytest.raises(UserError, match="gone"):
        small_run.online(tmp_path / "parts", **settings)
    assert not others(small_run.online(tmp_path / "parts", **settings, resume=True).path, whole)
