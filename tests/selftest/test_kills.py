"""Runs that are killed and resumed end as the one that was left alone. All of them: ``mmalign selftest --kill9 50``, and
``python scripts/fuzz/kills.py`` before every file operation."""

from __future__ import annotations

import os
import runpy
import signal
from pathlib import Path
from typing import Any

import pytest

from mmalign.distributed import forked
from mmalign.runs import checkpoint
from mmalign.selftest import kills
from mmalign.selftest.kills import HEARD, Kill, Killed, Killer
from mmalign.selftest.trials import contents, differing, trials
from mmalign.types import UserError
from tests.helpers import small_run

KILLS = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fuzz" / "kills.py"))


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    monkeypatch.setattr(kills, "TIMEOUT", 5.0)


def train(root: Path, resume: bool = False, **more: Any) -> None:
    small_run.online(root, resume=resume, steps=8, run={"checkpoint_every": 2}, **more)


def test_a_run_killed_before_some_file_operations(capsys: pytest.CaptureFixture[str]) -> None:
    assert KILLS["main"](["--every", "19"]) == 0, capsys.readouterr().out
    assert "; 0 wrong" in capsys.readouterr().out


def test_the_kills_are_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody sweeps, half of a checkpoint is left beside the others."""
    monkeypatch.setattr(checkpoint, "sweep", lambda folder: None)
    assert KILLS["main"](["--every", "11"]) > 0
    assert "differs in checkpoints/.step_" in capsys.readouterr().out


@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_instants(processes: int, tmp_path: Path) -> None:
    killer, row = Killer("small", train, tmp_path / "runs", processes=processes), Killed("small", processes)
    while row.kills < 2 and row.late < 30:
        row.add(killer.kill(row.kills + row.late))
    assert not row.wrong and row.identical == row.kills == 2 and not list(tmp_path.iterdir())


def test_a_resume_that_is_another_run_is_seen(tmp_path: Path) -> None:
    """Its optimiser begins anew."""

    def forgets(root: Path, resume: bool = False) -> None:
        train(root, resume, optimizer={"rate": 0.05 if not resume else 0.06})

    killer = Killer("small", train, tmp_path / "runs")
    killer.train = forgets
    wrong = next(kill.wrong for kill in (killer.kill(number) for number in range(30)) if kill.wrong)
    assert wrong.startswith("the resume ended with 2: ") and "cannot resume with another config: optimizer.rate" in wrong
    killer.train, killer.expected = train, {**killer.expected, "summary.json": "", "gone": ""}
    assert killer.kill(0).wrong == "differs in gone, summary.json"


def test_a_process_that_goes_on_without_the_others_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(root: Path, resume: bool = False) -> None:
        signal.pause()

    killer = Killer("small", train, tmp_path / "runs", processes=2)
    monkeypatch.setattr(kills, "PATIENCE", 0.2)
    monkeypatch.setattr(kills, "LONGEST", 0.2)
    killer.train, killer.seconds = deaf, 0.01
    killed = [killer.kill(number) for number in range(4)]
    assert Kill(True, "a process went on for 0 s after another was killed") in killed


def test_a_run_that_fails_by_itself_is_refused(tmp_path: Path) -> None:
    def fails(root: Path, resume: bool = False) -> None:
        raise UserError("no such luck")

    with pytest.raises(UserError, match="small: the run that is not killed ended with 2: no such luck"):
        Killer("small", fails, tmp_path / "runs")


def test_files_are_compared_but_for_their_times(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.1}\n{"step": 2, "seconds": 0.2}\n')
    (tmp_path / "report.html").write_text("one")
    before = contents(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.3}\n{"step": 2, "seconds": 0.4}\n')
    (tmp_path / "report.html").write_text("two")
    assert differing(tmp_path, before) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seconds": 0.3}\n{"step": 3, "seconds": 0.4}\n')
    (tmp_path / ".x.1.tmp").write_text("")
    assert differing(tmp_path, before) == [".x.1.tmp", "metrics.jsonl"]


def test_every_recipe_has_a_small_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {trial.recipe for trial in trials()} == {"online", "offline", "rounds"}
    monkeypatch.setattr("mmalign.rooms.index", lambda room: {"online": (), "rounds": (), "relay": (), "offline": ()})
    with pytest.raises(UserError, match="selftest: the recipe relay has no small run"):
        trials()


def test_processes_end_as_they_say(tmp_path: Path) -> None:
    def act(rank: int) -> None:
        if rank == 0:
            raise UserError(f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}")
        if rank == 1:
            signal.pause()

    pids = forked.fork(3, act, tmp_path)
    assert forked.wait([pids[0], pids[2]]) == [2, 0]
    assert forked.wait([pids[1]], patience=0.1) == [-signal.SIGKILL]
    assert forked.words(tmp_path, 3) == ["0 of 3", "", ""]


def test_a_killed_process_keeps_no_bar_s_lock_from_the_others(tmp_path: Path) -> None:
    from tqdm.auto import tqdm

    list(tqdm(range(2), disable=True))

    def holds(rank: int) -> None:
        with tqdm.get_lock():
            if rank == 0:
                signal.pause()

    holding, other = forked.fork(2, holds, tmp_path)
    assert forked.wait([other], patience=300.0) == [0]
    assert forked.wait([holding], patience=0.1) == [-signal.SIGKILL]


def test_who_hears_of_another_s_end_is_told_from_who_fails() -> None:
    """Of rounds, words begin with the stage's place."""
    assert HEARD.match("processes: process 0 of 2 hears nothing of process 1 any more")
    assert HEARD.match("round 2, train: processes: process 0 of 2 hears nothing of process 1 any more")
    assert not HEARD.match("round 2, train: records: no such file") and not HEARD.match("Traceback of a process")
