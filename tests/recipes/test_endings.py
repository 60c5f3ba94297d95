"""How runs end: whatever is missing, fails or stops them, what was trained is kept, and a resumed run equals one that was left alone."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.recipes import _run
from mmalign.runs import checkpoint
from mmalign.types import UserError
from tests.helpers.small_run import LINEAR, online, rows
from tests.recipes.test_online import equal, kept


class Scripted:
    """A reward or judge that does what is said at its n-th call, counted from 1, and else scores."""

    def __init__(self, **at: Any) -> None:
        self.at, self.calls = {int(name.removeprefix("call_")): act for name, act in at.items()}, 0

    def __call__(self, outputs: torch.Tensor, prompts: list[str], **columns: Any) -> Any:
        self.calls += 1
        scores = outputs @ LINEAR
        return self.at[self.calls](scores) if self.calls in self.at else scores


def failing(error: BaseException) -> Any:
    def act(scores: torch.Tensor) -> Any:
        raise error

    return act


def without(count: int) -> Any:
    """Scores of which the first so many are missing."""
    return lambda scores: torch.where(torch.arange(len(scores)) < count, torch.nan, scores)


SILENT = without(10**6)


# ---- the end of a run never fails it


def test_a_judge_that_misses_answers_at_the_first_evaluation_alone(tmp_path: Path) -> None:
    run = online(tmp_path, evaluation={"judges": {"gold": Scripted(call_1=without(3))}})
    assert run.summary["gold_missing_before"] == 3 and torch.isnan(torch.tensor(run.summary["gold_missing_after"]))
    assert json.loads((run.path / "summary.json").read_text())["gold_missing_after"] is None and run.report.path.is_file()


def test_a_judge_that_has_no_answer_at_any_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = online(tmp_path, evaluation={"judges": {"gold": Scripted(call_1=SILENT, call_2=SILENT, call_3=SILENT)}})
    page = run.report.path.read_text()
    assert "gold missing -> missing" in capsys.readouterr().out and "Gold has no number" in page
    assert run.summary["status"] == "finished" and "linear" in page


@pytest.mark.parametrize("first", [True, False])
def test_metrics_whose_keys_vary(tmp_path: Path, first: bool, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def metric(outputs: Any, prompts: Any) -> dict[str, float]:
        calls.append(1)
        return {"always": 1.0, **({"sometimes": 2.0} if (len(calls) == 1) == first else {})}

    run = online(tmp_path, evaluation={"metrics": {"m": metric}})
    assert ("sometimes 2.000 -> missing" if first else "sometimes missing -> 2.000") in capsys.readouterr().out
    assert run.report.path.is_file() and run.summary["always_after"] == 1.0


def test_a_judge_of_parts_that_loses_one_still_stops_early(tmp_path: Path) -> None:
    def parts(scores: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": scores, "b": scores}

    gold = Scripted(call_1=parts, call_2=lambda scores: {"a": scores}, call_3=parts)
    run = online(tmp_path, evaluation={"judges": {"gold": gold}, "stop": {"judge": "gold/b", "patience": 5}})
    assert run.summary["status"] == "finished"
    with pytest.raises(UserError, match=r"evaluation\.stop\.judge: got 'gold/c', takes one number of"):
        online(tmp_path / "other", evaluation={"judges": {"gold": Scripted(call_1=parts)}, "stop": {"judge": "gold/c"}})


def test_a_page_or_a_summary_that_cannot_be_written_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_run, "build", failing(IndexError("list index\nout of range")))
    monkeypatch.setattr("mmalign.training.journal.write_json", lambda *_: failing(OSError(28, "No space left on device"))(None))
    run = online(tmp_path)
    out = capsys.readouterr().out
    assert "report: could not be made (IndexError: list index out of range); mmalign report" in out
    assert "could not be written: [Errno 28] No space left on device" in out
    assert run.summary["linear_after"] > run.summary["linear_before"] and checkpoint.newest_step(run.path / "checkpoints") == 6


# ---- what stops a run in a step


STOPS: dict[str, tuple[Any, str]] = {
    "raises": (failing(RuntimeError("server is down")), "reward linear: raised RuntimeError: server is down"),
    "NaN": (without(2), r"reward linear: 2 of 8 scores are NaN \(batch.missing: drop goes on without those rows\)"),
    "too few": (lambda scores: scores[1:], r"reward linear: returned shape \[7\]"),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_reward_that_stops_a_run_loses_no_step(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    act, line = STOPS[name]
    with pytest.raises(UserError, match=line):
        online(tmp_path / "parts", rewards={"linear": Scripted(call_7=act)})  # an evaluation, 3 steps, an evaluation, a step, this one
    ending = "stopped in step 5; step 4 is saved, continue with --resume (in Python: resume=True) once this is mended"
    assert ending in capsys.readouterr().out
    parts = online(tmp_path / "parts", rewards={"linear": Scripted()}, resume=True)
    straight = online(tmp_path / "straight", rewards={"linear": Scripted()})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


@pytest.mark.parametrize(("at", "step"), [(5, 3), (9, 6)])
def test_an_evaluation_that_fails_is_done_when_the_run_is_resumed(tmp_path: Path, at: int, step: int) -> None:
    with pytest.raises(UserError, match="server is down"):
        online(tmp_path / "parts", rewards={"linear": Scripted(**{f"call_{at}": failing(RuntimeError("server is down"))})})
    assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == step
    parts = online(tmp_path / "parts", rewards={"linear": Scripted()}, resume=True)
    straight = online(tmp_path / "straight", rewards={"linear": Scripted()})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


def test_a_step_that_failed_half_way_is_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two updates fails: the parameters are no longer those of the step before, so the older checkpoint counts."""
    from mmalign.training.updates.learner import Learner

    update, calls = Learner.update, []

    def second_fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) in (8, 9):  # of the fourth step, and done again
            raise RuntimeError("CUDA error: out of memory")
        return update(self, *args, **kwargs)

    monkeypatch.setattr(Learner, "update", second_fails)
    with pytest.raises(UserError, match=r"step 4: out of memory \(CUDA error: out of memory, again, .*\); takes a smaller batch.micro"):
        online(tmp_path / "parts", run={"checkpoint_every": 2})
    assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == 2
    monkeypatch.setattr(Learner, "update", update)
    parts = online(tmp_path / "parts", run={"checkpoint_every": 2}, resume=True)
    straight = online(tmp_path / "straight", run={"checkpoint_every": 2})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


def test_out_of_memory_may_be_mended_by_smaller_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacks = Scripted(call_7=failing(MemoryError("8 GB")))
    with pytest.raises(UserError, match="reward linear: raised MemoryError"):
        online(tmp_path, rewards={"linear": lacks}, batch={"micro_rows": 8})
    capsys.readouterr()
    run = online(tmp_path, rewards={"linear": Scripted()}, batch={"micro_rows": 2}, resume=True)
    assert "goes on although batch.micro_rows was 8, is 2" in capsys.readouterr().out and run.summary["steps"] == 6


@pytest.mark.parametrize("every", [1, 2])
def test_references_that_moved_in_the_failed_step_are_not_saved_as_they_were(tmp_path: Path, every: int) -> None:
    """A soup with itself comes out otherwise a second time; a copy of what is trained does not."""
    soup = {"ref": mm.Reference(every=every, shares={"ref": 0.5, "current": 0.5})}
    with pytest.raises(UserError, match="down"):
        online(
            tmp_path / "parts",
            rewards={"linear": Scripted(call_7=failing(RuntimeError("down")))},
            references=soup,
            run={"checkpoint_every": 3},
        )
    assert checkpoint.newest_step(tmp_path / "parts" / "run" / "checkpoints") == 3  # step 5 had moved ref before it failed
    parts = online(tmp_path / "parts", rewards={"linear": Scripted()}, references=soup, run={"checkpoint_every": 3}, resume=True)
    straight = online(tmp_path / "straight", rewards={"linear": Scripted()}, references=soup, run={"checkpoint_every": 3})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


# ---- signals


def sends(number: int) -> Any:
    def act(scores: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), number)
        return scores

    return act


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("call", [4, 6])
def test_a_signal_ends_the_run_after_its_step(tmp_path: Path, name: str, call: int) -> None:
    """In step 3, whose evaluation is then left to the resumed run, and in step 4."""
    run = online(tmp_path / "parts", rewards={"linear": Scripted(**{f"call_{call}": sends(signal.Signals[name])})})
    step = {4: 3, 6: 4}[call]
    assert (run.summary["status"], run.summary["interrupted_by"], run.summary["steps"]) == ("interrupted", name, step)
    assert run.report.path.is_file() and checkpoint.newest_step(run.path / "checkpoints") == step
    parts = online(tmp_path / "parts", rewards={"linear": Scripted()}, resume=True)
    straight = online(tmp_path / "straight", rewards={"linear": Scripted()})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))
    assert "interrupted_by" not in parts.summary


# ---- several processes


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path) -> None:
    lines = []

    def second(scores: torch.Tensor) -> torch.Tensor:
        for resume in (False, True):
            with pytest.raises(UserError) as refused:
                online(tmp_path, resume=resume)
            lines.append(str(refused.value))
        return scores

    run = online(tmp_path, rewards={"linear": Scripted(call_2=second)})
    assert "exists: resume it" in lines[0] and "another process trains there" in lines[1]
    assert len(rows(run.path)) == 6 + 3 and online(tmp_path, rewards={"linear": Scripted()}, resume=True, steps=6)
