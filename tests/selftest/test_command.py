"""``mmalign selftest`` as a user calls it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.selftest import installation
from mmalign.selftest.installation import Finding


def test_runs_are_killed_and_nothing_is_left(tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), os.environ.get("CUDA_VISIBLE_DEVICES")
    ended = CliRunner().invoke(app, ["selftest", "--kill9", "1", "--only", "offline", "--processes", "1", "--folder", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    assert "offline, 1 process: 1 of 1 identical" in ended.output and not list(tmp_path.iterdir())
    assert torch.get_num_threads() == threads and os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_an_unknown_kind_is_one_line() -> None:
    ended = CliRunner().invoke(app, ["selftest", "--kill9", "1", "--only", "onlin"])
    assert ended.exit_code == 2 and ended.stderr.strip() == "--only: got 'onlin', takes denoising, games, offline, online, rounds, shards"
    ended = CliRunner().invoke(app, ["selftest", "--kill9", "1", "--only", "shards", "--processes", "1"])
    assert ended.exit_code == 2 and ended.stderr.strip() == "--processes: got 1 for shards, takes 2 or more"


def test_an_installation_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "trials", lambda: [trial for trial in TRIALS if trial.name == "offline"])
    ended = CliRunner().invoke(app, ["selftest", "--folder", str(tmp_path)])
    assert ended.exit_code == 0 and ended.output.rstrip().endswith("mmalign works here"), ended.output
    lines = {line[:31].strip(): line[32:] for line in ended.output.splitlines()}
    assert lines["ok      devices"].startswith("cpu") and lines["ok      folder"] == f"{tmp_path}: locks, flushes and renames"
    assert "ok      offline, 2 processes" in lines and not list(tmp_path.iterdir())


TRIALS = installation.trials()


def test_what_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.selftest.installation.installation", lambda root: [Finding("folder", False, "no"), Finding("a", None, "")])
    ended = CliRunner().invoke(app, ["selftest"])
    assert ended.exit_code == 1 and "failed  folder" in ended.output and ended.output.rstrip().endswith("failed: folder")


def test_a_folder_whose_locks_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation._writing(tmp_path).fine
    monkeypatch.setattr("filelock.FileLock.acquire", lambda self, *given, **more: self)
    assert installation._writing(tmp_path / "b") == Finding(
        "folder", False, f"{tmp_path / 'b'}: a lock can be taken twice, so that two runs might meet; takes another folder"
    )
