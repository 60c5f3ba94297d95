"""Rollouts that are sampled one step early: by which parameters, that they resume to the bit, and what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.samplers import kernels
from mmalign.types import Rollout, UserError
from mmalign.worlds import gaussian
from tests.distributed.test_every_method import PROMPTS, built, differences, varied
from tests.helpers.processes import together
from tests.helpers.small_run import LINEAR, method, online, policy, rows, trained
from tests.recipes.test_online import equal, kept

STALE: dict[str, Any] = {"staleness": 1}


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


class Watched(gaussian.GaussianPolicy):
    """Keeps by which parameters each step's rollout was sampled."""

    def __init__(self) -> None:
        super().__init__(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())
        self.sampled: dict[int, torch.Tensor] = {}

    def sample(self, *given: Any, step: int = 0, **more: Any) -> Rollout:
        self.sampled[step] = self.parameters()["shift"].detach().clone()
        return super().sample(*given, step=step, **more)


def test_a_rollout_is_of_the_parameters_before_the_update_in_between(tmp_path: Path) -> None:
    fresh, early = Watched(), Watched()
    online(tmp_path / "fresh", policy=fresh, steps=4)
    online(tmp_path / "early", policy=early, steps=4, batch=STALE)
    assert torch.equal(early.sampled[0], fresh.sampled[0]) and torch.equal(early.sampled[1], early.sampled[0])
    assert not torch.equal(early.sampled[2], early.sampled[1]) and not torch.equal(early.sampled[3], early.sampled[2])
    ratios = [[row["ratio_max"] for row in rows(tmp_path / name / "run") if "ratio_max" in row] for name in ("fresh", "early")]
    first = online(tmp_path / "once", steps=2, batch={**STALE, "updates": 1})  # of one update a step: the ratio is that of a stale rollout
    once = [row["ratio_max"] for row in rows(first.path) if "ratio_max" in row]
    assert once[0] == pytest.approx(1, abs=1e-9) and once[1] > 1.001 and len(ratios[0]) == len(ratios[1]) == 4


def test_it_learns(tmp_path: Path) -> None:
    run = online(tmp_path, steps=30, batch={**STALE, "prompts": 4}, evaluation={"every": 30, "samples": 64}, method=method(beta=0.01))
    assert run.summary["linear_after"] > run.summary["linear_before"] + 0.3


def asked(outputs: Any, prompts: list[str]) -> torch.Tensor:
    """A reward by which another prompt is another gradient."""
    return outputs @ LINEAR * torch.tensor([1.0 + "abc".index(prompt) for prompt in prompts], dtype=torch.float64)


def seldom(outputs: Any, prompts: list[str]) -> torch.Tensor:
    """A reward that says nothing of many groups, and so asks for more rollouts of a step, or leaves it without an update."""
    return (outputs[:, 0] > 2.2).double() * torch.tensor([1.0 + "abc".index(prompt) for prompt in prompts], dtype=torch.float64)


RESAMPLED = {"method": mm.methods.dapo(), "rewards": {"seldom": seldom}, "run": {"dead_steps": None}}


@pytest.mark.parametrize("more", [{"rewards": {"asked": asked}}, RESAMPLED], ids=["", "resampled"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(more: dict[str, Any], tmp_path: Path) -> None:
    straight = online(tmp_path / "straight", batch=STALE, **more)
    for steps in range(1, 7):
        parts = online(tmp_path / "parts", batch=STALE, steps=steps, resume=steps > 1, **more)
    assert trained(straight.path) == trained(parts.path) and len(trained(parts.path)) == 6
    assert more is not RESAMPLED or 0 < sum(row["updates"] == 0 for row in trained(parts.path)) < 6
    assert equal(kept(parts.path, 6)[0], kept(straight.path, 6)[0])
    assert set(kept(straight.path, 6)[0]) == {"trained", "ref", "ema", "behind", "optimizer"}


def test_a_run_that_a_reward_stopped_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    calls = list[int]()

    def gone(outputs: Any, prompts: list[str]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:  # an evaluation, two steps, and the third
            raise ConnectionError("the server is gone")
        return asked(outputs, prompts)

    more: dict[str, Any] = {"rewards": {"gone": gone}, "batch": STALE, "evaluation": {"every": 99}, "run": {"checkpoint_every": 99}}
    with pytest.raises(UserError, match="reward gone: raised ConnectionError: the server is gone"):
        online(tmp_path / "parts", **more)
    parts = online(tmp_path / "parts", **more, resume=True)
    straight = online(tmp_path / "straight", **more)
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


def of_answers(folder: Path, steps: int = 4, **more: Any) -> Path:
    """A language model, whose rollouts are sampled one step early."""
    policy, start = built(alike=False)  # nothing of a rollout may be kept from the run before
    policy.sets.sets.clear()
    policy.sets.load(start)
    run = mm.online(
        policy, PROMPTS, {"own": varied}, mm.methods.grpo(), steps=steps, optimizer=mm.adamw(rate=0.02, eps=1e-4),
        batch={**STALE, "prompts": 2, "group": 4}, evaluation={"every": 9, "samples": 1, "prompts": ["abc", "why"]},
        run={"folder": str(folder), "name": "run", "trackers": (), "checkpoint_every": 1}, **more,
    )  # fmt: skip
    return run.path


def test_a_language_model_s_stale_rollouts_resume_and_are_those_of_two_processes(tmp_path: Path) -> None:
    whole = of_answers(tmp_path / "one")
    of_answers(tmp_path / "parts", steps=2)
    parts = of_answers(tmp_path / "parts", resume=True)
    trained = [[row for row in rows(path) if row["phase"] == "train"] for path in (whole, parts)]
    assert trained[0] == trained[1] and len(trained[0]) == 4 and equal(kept(parts, 4)[0], kept(whole, 4)[0])
    ratios = [row["ratio_max"] for row in rows(whole) if "ratio_max" in row]
    assert ratios[0] == pytest.approx(1, abs=1e-6) and min(ratios[1:]) > 1.001  # of the parameters before the update in between
    ended = together(2, lambda rank: of_answers(tmp_path / "many"), tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert differences(tmp_path / "one", tmp_path / "many") == []


def test_the_first_signal_may_come_in_a_later_step(tmp_path: Path) -> None:
    calls = list[int]()

    def late(outputs: Any, prompts: list[str]) -> torch.Tensor:
        calls.append(1)
        return outputs @ LINEAR * (len(calls) > 4)  # an evaluation and three steps say nothing

    given = policy()
    with torch.no_grad():
        given.parameters()["shift"].fill_(1.0)
    more: dict[str, Any] = {"evaluation": {"every": 99}, "optimizer": {"rate": 0.05, "weight_decay": 0.5}}  # which moves it meanwhile
    run = online(tmp_path, policy=given, rewards={"late": late}, batch=STALE, **more)
    assert run.summary["preflight_difference"] == pytest.approx(0, abs=1e-9)


def test_the_next_rollout_is_sampled_while_this_one_is_scored_and_further_ones_of_a_step_are_of_its_own_prompts(tmp_path: Path) -> None:
    sampled, seen, watched = [threading.Event() for _ in range(4)], list[bool](), Watched()
    sample, taken = watched.sample, list[tuple[int, str]]()

    def noticed(prompts: list[str], *given: Any, step: int, **more: Any) -> Rollout:
        sampled[step].set()
        taken.append((step, "".join(prompts)))
        return sample(prompts, *given, step=step, **more)

    def patient(outputs: Any, prompts: list[str]) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread() and len(seen) < 1:
            seen.append(sampled[1].wait(300.0))
        return torch.zeros(len(prompts), dtype=torch.float64)  # nothing is worth an update

    watched.sample = noticed  # type: ignore[method-assign]
    more: dict[str, Any] = {"method": mm.methods.dapo(), "rewards": {"patient": patient}, "evaluation": {"every": 99}}
    online(tmp_path / "early", policy=watched, steps=2, batch={**STALE, "prompts": 1, "resample": 2}, **more)
    early = sorted(taken)
    taken.clear()
    online(tmp_path / "fresh", policy=watched, steps=2, batch={"prompts": 1, "resample": 2}, **more)
    assert seen == [True] and early == sorted(taken) and len(early) == 6


def test_methods_without_a_ratio_to_whoever_sampled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch\.staleness: got 1, and the method has no ratio"):
        online(tmp_path, method=mm.methods.reinforce(), batch=STALE)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"references\.behind: not a reference"):
        online(tmp_path, references={"behind": mm.Reference(every=2)}, batch=STALE)
