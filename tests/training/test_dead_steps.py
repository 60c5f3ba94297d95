"""Every method on every kind of data learns, or is refused before it starts, or says that it learned nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair, Ranking, Thumb
from mmalign.report.read import read
from mmalign.report.verdict import sentence, state
from mmalign.training import dead_steps
from mmalign.types import Method, UserError
from tests.helpers import small_run, tiny_text
from tests.helpers.flat import transformers
from tests.test_contract import METHODS, ORACLES

PROMPTS = ["abc", "why", "one two"]
WORDS = [("the answer", "a nswer"), ("no", "yes it is"), ("three", "two")]


def of_words(**more: Any) -> Any:
    policy = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(), max_completion=14, segments="sentence", **more)
    with torch.no_grad():  # away from the reference, whose margins of 0 some losses have no gradient at
        for number, parameter in enumerate(policy.parameters().values()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    policy.sets.keep("ref")
    return policy


def varied(outputs: Any, prompts: list[str]) -> list[float]:
    return [float(len(set(str(output))) + len(str(output)) / 7) for output in outputs]


def constant(outputs: Any, prompts: list[str]) -> list[float]:
    return [1.0 for _ in outputs]


RECORDS: dict[str, list[Any]] = {
    "pairs": [Pair(PROMPTS[n], *WORDS[n]) for n in range(3)],
    "scored pairs": [Pair(PROMPTS[n], *WORDS[n], scores=(0.9 - n / 5, -0.3 + n / 3)) for n in range(3)],
    "pairs scored alike": [Pair(PROMPTS[n], *WORDS[n], scores=(0.0, 0.0)) for n in range(3)],
    "thumbs": [Thumb(PROMPTS[n], WORDS[n][n % 2], label=float(n % 2)) for n in range(3)],
    "rankings": [Ranking(PROMPTS[n], (*WORDS[n], "or not"), scores=(0.7, 0.2 + n / 9, -0.4)) for n in range(3)],
}


def method_of(name: str) -> Method:
    return METHODS[name](**ORACLES[name][0][0])


def ended(make: Any, policy: Any, folder: Path) -> tuple[str, bool]:
    """How a run ended (``refused``, where it did before it began), and whether its parameters moved."""
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    try:
        status = str(make().summary["status"])
    except UserError as error:
        assert "\n" not in str(error)
        status = "refused"
        assert not (folder / "run" / "checkpoints").exists()
    return status, any(not torch.equal(parameter, before[name]) for name, parameter in policy.parameters().items())


def settings(folder: Path) -> dict[str, Any]:
    return {
        "steps": 1,
        "optimizer": mm.adamw(rate=1e-3),
        "evaluation": {"every": 9, "samples": 1, "prompts": ["abc"]},
        "run": {"folder": str(folder), "name": "run", "trackers": ()},
    }


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


TOKENS = [name for name in ORACLES if name in METHODS and "token" in method_of(name).kinds]


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("data", ["varied", "constant", "group of one"])
def test_no_online_run_says_finished_that_learned_nothing(name: str, data: str, tmp_path: Path) -> None:
    method = method_of(name)
    heads = [need.kind for need in method.needs | method.reads if need.kind == "value"]
    policy = of_words(**({"heads": ["value"]} if heads else {}))
    reward, batch = (constant if data == "constant" else varied), {"prompts": 2, "group": 1 if data == "group of one" else 4, "resample": 0}
    run = lambda: mm.online(policy, PROMPTS, {"own": reward}, method, batch=batch, **settings(tmp_path))  # type: ignore[arg-type]  # noqa: E731
    status, moved = ended(run, policy, tmp_path)
    assert status in ("finished", "learned nothing", "refused") and (data != "varied" or status != "learned nothing")
    assert moved == (status == "finished") or any(move.name == "current" for move in method.moves)  # which moves by itself


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("data", list(RECORDS))
def test_no_offline_run_says_finished_that_learned_nothing(name: str, data: str, tmp_path: Path) -> None:
    method = method_of(name)
    policy = of_words()
    run = lambda: mm.offline(policy, RECORDS[data], method, batch={"records": 3}, **settings(tmp_path))  # type: ignore[arg-type]  # noqa: E731
    status, moved = ended(run, policy, tmp_path)
    assert status in ("finished", "refused") or data == "pairs scored alike"  # what cannot learn is known before it starts
    assert moved == (status == "finished")


NEED_SCORES = ("mm_dpo", "modpo", "raft", "a_lol", "rebel", "reinforce", "reward_weighted_regression", "gpg")


@pytest.mark.parametrize("name", NEED_SCORES)
def test_pairs_without_scores_are_refused_by_methods_of_scores(name: str, tmp_path: Path) -> None:
    given = settings(tmp_path)
    with pytest.raises(UserError, match=r"records: the first 96 rows say nothing that this method learns from: they have no scores"):
        mm.offline(of_words(), RECORDS["pairs"], method_of(name), batch={"records": 3}, **given)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
    if name == "rebel":  # whose ratio is to the policy that sampled
        return
    run = mm.offline(of_words(), RECORDS["scored pairs"], method_of(name), batch={"records": 3}, **given)  # type: ignore[arg-type]
    assert run.summary["status"] == "finished" and "dead_steps" not in run.summary


def test_groups_of_one_are_refused_where_they_are_centred(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch: with prompts: 2 and group: 1 this method has no signal, .* takes group: 2 or more"):
        small_run.online(tmp_path, batch={"group": 1})
    with pytest.raises(UserError, match=r"this method has no signal"):
        mm.online(of_words(), PROMPTS, {"own": varied}, mm.methods.grpo(), batch={"group": 1}, **settings(tmp_path))  # type: ignore[arg-type]


def test_a_critic_starts_where_the_first_rewards_are_all_0(tmp_path: Path) -> None:
    nothing = lambda outputs, prompts: [0.0 for _ in outputs]  # noqa: E731
    policy = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(), max_completion=6, heads=["value"])  # whose values are 0
    run = mm.online(policy, PROMPTS, {"own": nothing}, mm.methods.ppo(), batch={"group": 2}, **settings(tmp_path))  # type: ignore[arg-type]
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
    said = capsys.readouterr()
    assert "2 of 2 steps taught nothing: no row has a signal" in said.out + said.err
    assert sentence(read(run.path), []).startswith("2 of 2 steps taught nothing (no row has a signal")
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
