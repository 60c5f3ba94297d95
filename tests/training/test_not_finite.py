"""Numbers that are not finite: raised, skipped or dropped as a run says, counted, and the end of it after too many in a row."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.report.read import read
from mmalign.report.verdict import sentence
from mmalign.runs import checkpoint
from mmalign.training.updates.not_finite import Odd, without
from mmalign.types import Steps, UserError
from mmalign.worlds.gaussian import GaussianPolicy
from tests.distributed.test_every_method import differences
from tests.helpers import small_run
from tests.helpers.processes import together
from tests.training.test_learner import METHOD, learner, rollouts, small


def spoilt(steps: Steps, what: str, rows: list[int]) -> Steps:
    """The same with NaN in those rows of a table, reached by the gradient where it has one."""
    bad = torch.zeros(len(steps.mask), 1, dtype=torch.float64)
    bad[rows] = torch.nan
    if what == "kls":
        return replace(steps, kls={name: table + bad for name, table in steps.kls.items()})
    return replace(steps, **{what: getattr(steps, what) + bad})


class Spoils(GaussianPolicy):
    """A policy some of whose rows, by their starting noise, are scored NaN."""

    what, bad = "log_probs", frozenset[float]()

    def steps(self, rollout: Any, rows: torch.Tensor, *given: Any, **more: Any) -> Steps:
        steps = super().steps(rollout, rows, *given, **more)
        return spoilt(steps, self.what, [place for place, row in enumerate(rows.tolist()) if key(rollout, row) in self.bad])


def key(rollout: Any, row: int) -> float:
    return round(float(rollout.outputs[row].sum()), 9)


def updated(then: str, what: str, bad: int, *, left_out: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, float], Any]:
    """Parameters after an update in which ``bad`` rows are spoilt, or are not there (left_out)."""
    policy: Any = small()
    cells = rollouts(policy)
    rows = cells[0].rows[torch.tensor([1, 4])[:bad]]
    if left_out:
        cells[0] = replace(cells[0], rows=torch.tensor([row for row in cells[0].rows.tolist() if row not in rows.tolist()]))
    else:
        policy.__class__ = Spoils
        policy.what, policy.bad = what, frozenset(key(cells[0].rollout, row) for row in rows.tolist())
    taught = learner(policy, METHOD)
    taught.non_finite.then = then
    taught.begin(0)
    metrics = taught.update(cells, micro_rows=2, step=0)
    return {name: value.detach().clone() for name, value in policy.parameters().items()}, metrics, taught


@pytest.mark.parametrize(("what", "words"), [("log_probs", "log-probabilities"), ("old", "log-probabilities"), ("kls", "loss")])
def test_dropped_rows_leave_the_update_of_the_others(what: str, words: str) -> None:
    wanted, metrics, _ = updated("drop", what, 2, left_out=True)
    got, numbers, taught = updated("drop", what, 2)
    assert taught.non_finite.dropped == 2 and taught.non_finite.what == f"the {words} of 2 of 7 rows"
    assert numbers == metrics and numbers["skipped"] == 0 and numbers["live"] == 1
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_skipped_update_moves_nothing_and_is_counted() -> None:
    before = {name: value.detach().clone() for name, value in _moved_apart().parameters().items()}
    got, metrics, taught = updated("skip", "log_probs", 1)
    assert all(torch.equal(got[name], value) for name, value in before.items())
    assert (metrics["skipped"], metrics["live"], taught.updates) == (1, 0, 0)
    assert (taught.non_finite.skipped, taught.non_finite.dropped) == (1, 0)


def _moved_apart() -> GaussianPolicy:
    policy = small()
    rollouts(policy)
    return policy


def test_it_is_raised_where_that_is_asked_for_and_nothing_has_moved() -> None:
    with pytest.raises(UserError, match=r"the log-probabilities of 1 of 7 rows: not finite \(NaN or infinite\); takes a lower .* drop"):
        updated("raise", "log_probs", 1)


def test_a_loss_that_hides_from_the_gradient_is_not_taken_for_finite() -> None:
    """A NaN without a graph: the gradient of it is finite, and the loss that is logged is not."""
    policy = small()
    cells = rollouts(policy)

    def loss(steps: Any, signal: Any) -> Any:
        made = METHOD.loss(steps, signal)
        return made._replace(values=made.values + torch.tensor(torch.nan, dtype=torch.float64))

    taught = learner(policy, replace(METHOD, loss=loss))
    metrics = taught.update(cells, micro_rows=4, step=0)
    assert metrics["skipped"] == 1 and taught.updates == 0 and taught.non_finite.what == "the loss of 7 of 7 rows"
    taught.non_finite.then = "drop"  # of which nothing is left
    assert taught.update(cells, micro_rows=4, step=0)["skipped"] == 1 and taught.updates == 0


def test_whole_units_are_dropped() -> None:
    experience = rollouts(small())[0]
    experience = replace(experience, rows=torch.tensor([0, 1, 2, 5, 6, 7]))
    assert without("pair", experience, Odd([1], [])).rows.tolist() == [2, 5, 6, 7]
    assert without("row", experience, Odd([1], [4])).rows.tolist() == [0, 2, 5, 7]
    assert without("group", experience, Odd([], [5])).rows.tolist() == [0, 1, 2]
    assert without("batch", experience, Odd([0], [])).rows.tolist() == []


class Breaks:
    """A policy's ``steps`` whose updates, from the step ``first`` on, have a NaN in the rows of one group's ``number``."""

    def __init__(self, first: int, steps: int = 10**9) -> None:
        self.first, self.last, self.step = first, first + steps, 0

    def at(self, step: int) -> None:
        self.step = step

    def __call__(self, outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return outputs @ small_run.LINEAR

    def policy(self) -> GaussianPolicy:
        own, breaks = small_run.policy(), self

        class Own(GaussianPolicy):
            def steps(self, rollout: Any, rows: torch.Tensor, *given: Any, **more: Any) -> Steps:
                steps = super().steps(rollout, rows, *given, **more)
                if not breaks.first <= breaks.step < breaks.last or not steps.log_probs.requires_grad:
                    return steps
                return spoilt(steps, "log_probs", [place for place, row in enumerate(rows.tolist()) if row % 4 == 1])

        own.__class__ = Own
        return own


def trained(folder: Path, breaks: Breaks, then: str, **more: Any) -> Any:
    run = {"non_finite": then, "checkpoint_every": 99, **more.pop("run", {})}
    return small_run.online(folder, policy=breaks.policy(), rewards={"linear": breaks}, run=run, optimizer={"ema": None}, **more)


def test_a_run_that_raises_is_saved_and_may_go_on_otherwise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the log-probabilities of 2 of 4 rows: not finite"):
        trained(tmp_path, Breaks(2, steps=2), "raise", run={"checkpoint_every": 1})
    assert checkpoint.newest_step(tmp_path / "run" / "checkpoints") == 2
    run = trained(tmp_path, Breaks(2, steps=2), "skip", run={"checkpoint_every": 1}, resume=True)
    assert (run.summary["status"], run.summary["steps"], run.summary["skipped_updates"]) == ("finished", 6, 2)
    assert run.summary["not_finite"] == "the log-probabilities of 2 of 4 rows"
    skipped = [row["skipped"] for row in small_run.rows(run.path) if row["phase"] == "train"]
    assert skipped == [0, 0, 0.5, 0.5, 0, 0]  # of two updates


def test_a_run_ends_after_so_many_in_a_row_and_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path, Breaks(1), "drop", run={"non_finite_steps": 3})
    assert (run.summary["status"], run.summary["steps"], run.summary["dropped_rows"]) == ("not finite", 4, 6)
    out = capsys.readouterr().out
    assert "step    2  the log-probabilities of 2 of 4 rows not finite, 2 rows dropped" in out and out.count("not finite, 2 rows") == 1
    assert "6 rows dropped: the log-probabilities of 2 of 4 rows not finite" in out
    assert sentence(read(run.path), []).startswith("It was ended, since numbers were not finite: the log-probabilities of 2 of 4 rows")
    again = trained(tmp_path, Breaks(99), "drop", run={"non_finite_steps": 3}, resume=True)
    assert (again.summary["status"], again.summary["dropped_rows"]) == ("finished", 6)


def test_an_end_in_a_row_counts_steps_from_the_checkpoint_on(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", Breaks(1), "skip", run={"non_finite_steps": 4})
    trained(tmp_path / "parts", Breaks(1), "skip", run={"non_finite_steps": 4}, steps=3)
    parts = trained(tmp_path / "parts", Breaks(1), "skip", run={"non_finite_steps": 4}, resume=True)
    assert whole.summary["status"] == parts.summary["status"] == "not finite" and whole.summary["steps"] == parts.summary["steps"] == 5
    assert whole.summary["skipped_updates"] == parts.summary["skipped_updates"] == 4


def test_rewards_without_a_finite_number_are_dropped_and_counted(tmp_path: Path) -> None:
    def reward(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = outputs @ small_run.LINEAR
        if len(outputs) == 8:  # an infinite one ends an evaluation
            scores[1], scores[6] = math.nan, math.inf
        return scores

    with pytest.raises(UserError, match="reward linear: returned an infinite score"):
        small_run.online(tmp_path, rewards={"linear": reward}, steps=2)
    run = small_run.online(tmp_path, rewards={"linear": reward}, steps=2, batch={"missing": "drop"})
    rows = [row for row in small_run.rows(run.path) if row["phase"] == "train"]
    assert [row["missing/linear"] for row in rows] == [2, 2] and all(math.isfinite(row["reward"]) and row["rows"] == 6 for row in rows)


def test_several_processes_drop_the_rows_that_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)
    run = lambda where: trained(tmp_path / where, Breaks(1, steps=2), "drop", steps=4, batch={"prompts": 2})  # noqa: E731
    run("one")
    assert together(2, lambda rank: run("two"), tmp_path / "processes") == [(0, "")] * 2
    one, two = (small_run.rows(tmp_path / where / "run") for where in ("one", "two"))
    assert [row.get("dropped", 0) for row in one] == [row.get("dropped", 0) for row in two] and one[3]["dropped"] == 2
    assert not differences(tmp_path / "one", tmp_path / "two")


def test_several_processes_raise_together(tmp_path: Path) -> None:
    ended = together(2, lambda rank: trained(tmp_path, Breaks(1), "raise", batch={"prompts": 2}), tmp_path / "processes")
    assert [code for code, _ in ended] == [2, 2] and all("of 4 rows: not finite" in words for _, words in ended), ended


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run.non_finite: got 'stop', takes 'raise' or 'skip' or 'drop'"):
        small_run.online(tmp_path, run={"non_finite": "stop"})
