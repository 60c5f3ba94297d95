"""Steps that teach nothing: refused before a run starts, counted, said, and the end of a run. Of every method: test_learning_matrix.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.report.read import read
from mmalign.report.verdict import sentence, state
from mmalign.training.rollouts import dead_steps
from mmalign.types import UserError
from tests.helpers import small_run, tiny_text
from tests.helpers.flat import transformers


def settings(folder: Path) -> dict[str, Any]:
    return {"steps": 1, "evaluation": {"every": 9, "samples": 1}, "run": {"folder": str(folder), "name": "run", "trackers": ()}}


def test_groups_of_one_are_refused_where_they_are_centred(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch: with prompts: 2 and group: 1 this method has no signal, .* takes group: 2 or more"):
        small_run.online(tmp_path, batch={"group": 1})


def test_a_critic_starts_where_the_first_rewards_are_all_0(tmp_path: Path) -> None:
    nothing = lambda outputs, prompts: [0.0 for _ in outputs]  # noqa: E731
    policy = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(), max_completion=6, heads=["value"])  # whose values are 0
    run = mm.online(policy, ["abc", "why"], {"own": nothing}, mm.methods.ppo(), batch={"group": 2}, **settings(tmp_path))  # type: ignore[arg-type]
    assert run.summary["status"] == "learned nothing" and run.summary["preflight_difference"] < 1e-6


class Late:
    """A reward that says the same of everything before step ``first``."""

    def __init__(self, first: int) -> None:
        self.first, self.step = first, 0

    def at(self, step: int) -> None:
        self.step = step

    def __call__(self, outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return outputs.sum(1) if self.step >= self.first else torch.zeros(len(outputs))


def test_a_run_ends_after_so_many_steps_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = small_run.online(tmp_path, rewards={"late": Late(99)}, run={"dead_steps": 2})
    assert (run.summary["status"], run.summary["steps"], run.summary["dead_steps"]) == ("learned nothing", 2, 2)
    printed = capsys.readouterr()
    assert "2 of 2 steps taught nothing: no row has a signal" in printed.out + printed.err
    assert sentence(read(run.path), []).startswith("It learned nothing: 2 of 2 steps taught nothing (no row has a signal")
    assert state(read(run.path)) == "Learned nothing, step 2 of 6"
    assert list((run.path / "checkpoints").iterdir())


def test_a_run_whose_reward_comes_late_says_what_was_lost(tmp_path: Path) -> None:
    run = small_run.online(tmp_path, rewards={"late": Late(2)}, run={"dead_steps": 3})
    assert (run.summary["status"], run.summary["steps"], run.summary["dead_steps"]) == ("finished", 6, 2)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["live"] for row in rows if row["phase"] == "train"] == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"updates": 0.0}, dead_steps.NO_ROW),
        ({"updates": 1.0, "live": 0.0, "skipped": 1.0, "signal_zero": 0.0}, dead_steps.NOT_FINITE),
        ({"updates": 1.0, "live": 0.0, "skipped": 0.0, "signal_zero": 1.0}, dead_steps.NO_SIGNAL),
        ({"updates": 1.0, "live": 0.0, "skipped": 0.0, "signal_zero": 0.5}, dead_steps.NO_GRADIENT),
        ({"updates": 2.0, "live": 0.5, "skipped": 0.5, "signal_zero": 0.0}, ""),
    ],
)
def test_why_a_step_taught_nothing(row: dict[str, float], why: str) -> None:
    assert dead_steps.why_dead(row) == why


def test_weights_in_half_precision_whose_updates_are_skipped_say_so(tmp_path: Path) -> None:
    policy = small_run.policy()
    for parameter in policy.parameters().values():
        parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"preflight: the policy gradient is (inf|nan)"):
        small_run.online(tmp_path, policy=policy)
