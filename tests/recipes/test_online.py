"""The online recipe on the closed-form world: where it converges, that it resumes to the bit, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmalign as mm
from mmalign.runs import checkpoint
from mmalign.training.rollouts.prompts import Prompts
from mmalign.training.updates.experience import Experience
from mmalign.types import Need, UserError
from mmalign.worlds import chains
from tests.helpers.small_run import LINEAR, arguments, method, online, path_distance, policy, rows


def equal(a: Any, b: Any) -> bool:
    """Nested mappings of tensors, equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def kept(run: Path, step: int) -> tuple[Any, Any]:
    """A checkpoint without its times."""
    tensors, state = checkpoint.load(run / "checkpoints" / f"step_{step:06d}")
    return tensors, {key: value for key, value in state.items() if key != "train_seconds"}


def numbers(run: Path) -> list[dict[str, float]]:
    """metrics.jsonl without times and phases."""
    return [{key: value for key, value in row.items() if key != "phase"} for row in rows(run)]


# ---- where it converges


def test_it_finds_the_optimum_of_reward_minus_beta_nats_of_a_trajectory(tmp_path: Path) -> None:
    """In groups of G, whose mean includes the row itself, the optimum is that of beta G / (G - 1)."""
    beta, group_size = 0.5, 4
    trained, tilted, plain = policy(), policy(), policy()
    with torch.no_grad():
        tilted.parameters()["shift"].copy_(chains.path_optimum(tilted, LINEAR, beta=beta * group_size / (group_size - 1))[0])
        plain.parameters()["shift"].copy_(chains.path_optimum(plain, LINEAR, beta=beta)[0])
    run = online(
        tmp_path,
        policy=trained,
        prompts=["a"],
        method=method(beta=beta, clip=1.0, advantage_clip=None),
        steps=150,
        evaluation={"every": 1000},
        batch={"prompts": 64, "group": group_size, "micro_rows": 256, "updates": 1},
        optimizer={"rate": 0.03, "max_norm": 1e9, "ema": 0.98},
        run={"checkpoint_every": 1000},
    )
    with trained.using("ema"):
        assert path_distance(trained, tilted) < 0.006
        assert path_distance(trained, plain) > 0.05
    assert path_distance(policy(), tilted) > 0.6
    cost = path_distance(tilted, policy())
    assert run.summary["kl"] == pytest.approx(cost, rel=0.15) and run.summary["linear_after"] > run.summary["linear_before"] + 0.8


@pytest.mark.parametrize(("beta", "steps"), [(0.1, [1, 2, 3, 4, 5]), (0.0, [2, 4, 5])])
def test_a_reference_that_the_log_alone_asks_for_is_asked_where_an_evaluation_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beta: float, steps: list[int]
) -> None:
    asked = list[list[str]]()
    trained = policy()
    remember = trained.remember
    monkeypatch.setattr(trained, "remember", lambda rollout, names, most: asked.append([*names]) or remember(rollout, names, most))
    run = online(tmp_path, policy=trained, method=method(beta=beta), steps=5, evaluation={"every": 2})
    assert [number for number, names in enumerate(asked, 1) if names == ["ref"]] == steps and len(asked) == 5
    training, evaluations = ([row for row in rows(tmp_path / "run") if row["phase"] == phase] for phase in ("train", "eval"))
    assert [row["step"] for row in training if "kl" in row] == steps
    assert [row["step"] for row in evaluations if not math.isnan(row["kl"])] == [0, 2, 4, 5]
    assert run.summary["kl"] == training[-1]["kl"]


# ---- resume


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path) -> None:
    straight = online(tmp_path / "straight")
    online(tmp_path / "parts", steps=3)
    parts = online(tmp_path / "parts", resume=True)
    assert rows(parts.path) == rows(straight.path) and len(rows(straight.path)) == 6 + 3
    assert equal(kept(parts.path, 6), kept(straight.path, 6))
    tensors, _ = kept(straight.path, 6)
    assert set(tensors) == {"trained", "ref", "ema", "optimizer"} and not equal(tensors["trained"], tensors["ema"])
    assert equal(parts.policy.sets.tables(), straight.policy.sets.tables())
    without = [{key: value for key, value in run.summary.items() if key != "train_seconds"} for run in (parts, straight)]
    assert without[0] == without[1] and without[0]["status"] == "finished"


class PressesCtrlC:
    """A reward during whose ``call``-th call the user presses Ctrl-C."""

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, outputs: torch.Tensor, prompts: list[str], **columns: Any) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.call:
            os.kill(os.getpid(), signal.SIGINT)
        return outputs @ LINEAR


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = online(tmp_path / "parts", rewards={"linear": PressesCtrlC(6)})  # an evaluation, three steps, an evaluation, and the fourth
    assert run.summary["status"] == "interrupted" and run.summary["steps"] == 4 and (run.path / "report.html").is_file()
    assert "interrupted after step 4 and saved; continue with --resume (in Python: resume=True)" in capsys.readouterr().out
    assert checkpoint.latest(run.path / "checkpoints") == run.path / "checkpoints" / "step_000004"
    parts = online(tmp_path / "parts", rewards={"linear": PressesCtrlC(0)}, resume=True)
    straight = online(tmp_path / "straight", rewards={"linear": PressesCtrlC(0)})
    assert rows(parts.path) == rows(straight.path) and equal(kept(parts.path, 6), kept(straight.path, 6))


def test_ctrl_c_in_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    assert online(tmp_path, steps=1, rewards={"linear": PressesCtrlC(2)}).summary["status"] == "finished"


def test_a_run_from_python_says_what_it_can_and_resumes_with_nothing_else_changed(tmp_path: Path) -> None:
    run = online(tmp_path, steps=2)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["use"] == "online" and config["policy"] == "<GaussianPolicy>" and config["steps"] == 2
    assert config["rewards"] == {"linear": "<QuadraticReward>"} and config["prompts"] == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"optimizer\.rate was 0\.05, is 0\.1"):
        online(tmp_path, resume=True, optimizer={"rate": 0.1})
    assert online(tmp_path, steps=4, resume=True).summary["steps"] == 4
    with pytest.raises(UserError, match=r"exists: resume it \(--resume; in Python resume=True\), or give this run another name"):
        online(tmp_path)
    assert len(rows(run.path)) == 4 + 4  # evaluated at 0, 2 (the end then), 3 and 4


# ---- updates


@pytest.mark.parametrize("micro_rows", [1, 3, 64])
def test_micro_rows_change_nothing(tmp_path: Path, micro_rows: int) -> None:
    ours, other = online(tmp_path / "ours", batch={"micro_rows": micro_rows}), online(tmp_path / "other", batch={"micro_rows": 4})
    assert numbers(ours.path) == [pytest.approx(row, rel=1e-10, abs=1e-12) for row in numbers(other.path)]


def test_inner_updates_leave_ratio_1_and_meet_the_clip(tmp_path: Path) -> None:
    once = online(tmp_path / "once", method=method(clip=0.01), batch={"updates": 1})
    trained = [row for row in rows(once.path) if row["phase"] == "train"]
    assert all(row["ratio_max"] == 1 and row["clip_fraction"] == 0 and row["updates"] == 1 for row in trained)
    often = online(tmp_path / "often", method=method(clip=0.01), batch={"epochs": 2, "updates": 2})
    trained = [row for row in rows(often.path) if row["phase"] == "train"]
    assert all(row["updates"] == 4 and row["ratio_max"] > 1.01 and row["approx_kl"] > 0 for row in trained)
    assert max(row["clip_fraction"] for row in trained) > 0.1


def test_every_epoch_sees_every_row_once(tmp_path: Path) -> None:
    from mmalign.recipes.online import _parts

    rollout = policy().sample(["a", "b"], 4, torch.Generator().manual_seed(0))
    picks = (torch.tensor(picked, dtype=torch.int64) for picked in ([0, 1, 2, 5, 7], [], [3]))
    batches = [Experience(rollout, torch.ones(8, 1), picked) for picked in picks]
    seen = [[one.rows.tolist() for one in part] for part in _parts(batches, "row", 2, 2)]
    assert seen == 2 * [[[0, 2, 7], [], [3]], [[1, 5], [], []]]
    assert len(list(_parts(batches[1:2], "row", 2, 2))) == 0


def test_the_average_of_the_weights_is_what_is_evaluated(tmp_path: Path) -> None:
    def position(outputs: torch.Tensor, prompts: list[str]) -> dict[str, float]:
        return {"position": float(outputs.mean())}

    still = online(tmp_path / "still", optimizer={"ema": 0.0}, evaluation={"metrics": {"p": position}})
    slow = online(tmp_path / "slow", optimizer={"ema": 0.999}, evaluation={"metrics": {"p": position}})
    none = online(tmp_path / "none", optimizer={"ema": None}, evaluation={"metrics": {"p": position}})
    assert still.summary["position_after"] == none.summary["position_after"] != slow.summary["position_after"]
    last = slow.policy.generate(["a"] * 4, [2**40 + n for n in range(4)])
    with slow.policy.using("ema"):
        averaged = slow.policy.generate(["a", "a", "a", "a", "b", "b", "b", "b", "c", "c", "c", "c"], [2**40 + n for n in range(12)])
    assert float(averaged.mean()) == slow.summary["position_after"] and not torch.equal(last, averaged[:4])


def test_kl_is_nats_of_a_whole_trajectory(tmp_path: Path) -> None:
    """The second step's rollout comes from parameters we can put back; its KL at the first update is the path's."""
    first = online(tmp_path, steps=1, batch={"updates": 1, "group": 256}, optimizer={"ema": None})
    second = online(tmp_path, steps=2, resume=True, batch={"updates": 1, "group": 256}, optimizer={"ema": None})
    moved = policy()
    tensors, _ = checkpoint.load(first.path / "checkpoints" / "step_000001")
    moved.sets.load({"trained": tensors["trained"]})
    assert second.summary["kl"] == pytest.approx(path_distance(moved, policy()), rel=0.1)


# ---- dynamic sampling


class Sparse:
    """0 or 1, tied in most groups: a group is worth an update only where its first output lies right of ``line``."""

    def __init__(self, line: float) -> None:
        self.line = line

    def __call__(self, outputs: torch.Tensor, prompts: list[str], **columns: Any) -> torch.Tensor:
        return (outputs[:, 0] > self.line).double()


def test_dynamic_sampling_fills_an_update_from_several_rollouts(tmp_path: Path) -> None:
    changes = {"method": mm.methods.dapo(), "rewards": {"sparse": Sparse(1.6)}, "evaluation": {"every": 3}}
    batch = {"prompts": 4, "updates": 1}
    run = online(tmp_path / "a", **changes, batch={**batch, "resample": 8})
    other = online(tmp_path / "b", **changes, batch={**batch, "resample": 8, "micro_rows": 3})
    trained = [row for row in rows(run.path) if row["phase"] == "train"]
    assert all(row["rows"] == 4 * 4 and row["updates"] == 1 for row in trained)
    assert max(row["signal_zero"] for row in trained) > 0.2  # more was sampled than used
    assert numbers(run.path) == [pytest.approx(row, rel=1e-10, abs=1e-12) for row in numbers(other.path)]
    fewer = online(tmp_path / "c", **changes, batch={**batch, "resample": 0})
    assert min(row["rows"] for row in rows(fewer.path) if row["phase"] == "train") < 16


def test_a_judge_that_falls_while_the_reward_rises_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def saying(means: Iterable[float]) -> Any:
        left = iter(means)  # of one call after another, with a little noise
        return lambda outputs, prompts: next(left) + 0.01 * torch.arange(len(prompts)).double() / len(prompts)

    gold = saying([0.5, 0.8, 0.8, 0.4, 0.3])
    online(tmp_path, rewards={"proxy": saying(count())}, steps=8, evaluation={"every": 2, "judges": {"gold": gold}})
    lines = [line for line in capsys.readouterr().out.splitlines() if "over-optimised" in line]
    assert lines == ["step    6  over-optimised: gold fell from 0.805 at step 4 to 0.405 while the reward proxy rose"]


def test_a_step_without_an_informative_group_trains_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = policy()
    run = online(tmp_path, policy=given, method=mm.methods.dapo(), rewards={"sparse": Sparse(1e9)}, steps=2, batch={"resample": 2})
    assert "step 1: no group is informative after 3 rollouts, so nothing was updated" in capsys.readouterr().out
    trained = [row for row in rows(run.path) if row["phase"] == "train"]
    assert [(row["rows"], row["updates"], row["signal_zero"]) for row in trained] == [(0, 0, 1)] * 2
    tables = given.sets.tables()
    assert equal(tables["trained"], tables["ref"]) and equal(tables["ema"], tables["ref"])
    assert "preflight_difference" not in run.summary


def test_missing_rewards_can_be_dropped(tmp_path: Path) -> None:
    def sometimes(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.where(outputs[:, 0] > 0.5, outputs[:, 0], torch.nan)

    with pytest.raises(UserError, match=r"reward sometimes: \d of 8 scores are NaN"):
        online(tmp_path, rewards={"sometimes": sometimes})
    run = online(tmp_path, rewards={"sometimes": sometimes}, batch={"missing": "drop"})
    trained = [row for row in rows(run.path) if row["phase"] == "train"]
    assert 0 < min(row["rows"] for row in trained) < 8 and all(math.isfinite(row["loss"]) for row in trained)


def test_prompts_are_taken_in_turn() -> None:
    def taken(prompts: str, *, seed: int = 1, attempt: int = 0, start: int = 0, count: int) -> list[str]:
        coming = Prompts(list(prompts), policy(), seed=seed)
        coming.resumed({}, position=start)
        coming.position = start
        return coming.sampled(lambda chosen: chosen, count, attempt=attempt)[0]  # type: ignore[arg-type, return-value]

    six = taken("abc", count=6)
    assert sorted(six[:3]) == sorted(six[3:]) == ["a", "b", "c"]
    assert taken("abc", start=2, count=2) == six[2:4]
    many = [taken("abcdefgh", seed=seed, attempt=attempt, count=8) for seed, attempt in ((1, 0), (1, 1), (2, 0))]
    assert many[0] != many[1] != many[2] != many[0]


# ---- early stopping


class Judge:
    """Means of the answers it was given, one list entry for each call."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def __call__(self, outputs: torch.Tensor, prompts: list[str], **columns: Any) -> torch.Tensor:
        return torch.full((len(prompts),), self.scores.pop(0))


def test_early_stopping_keeps_the_best_and_reports_it(tmp_path: Path) -> None:
    judged = {"every": 1, "samples": 2, "judges": {"gold": Judge(0.1, 0.5, 0.9, 0.3, 0.8, 1.0)}, "stop": {"judge": "gold", "patience": 2}}
    run = online(tmp_path / "stopped", evaluation=judged, optimizer={"ema": None})
    assert {key: run.summary[key] for key in ("status", "steps", "best_step", "gold_before")} == {
        "status": "stopped early", "steps": 4, "best_step": 2, "gold_before": pytest.approx(0.1),
    }  # fmt: skip
    assert run.summary["gold_after"] == pytest.approx(0.9)
    straight = online(tmp_path / "straight", steps=2, optimizer={"ema": None})
    tensors, _ = kept(run.path, 4)
    assert equal(tensors["best"], kept(straight.path, 2)[0]["trained"]) and not equal(tensors["best"], tensors["trained"])


def test_early_stopping_is_refused_where_its_judge_is_unknown(tmp_path: Path) -> None:
    for wrong, line in (
        ({"judge": "gold"}, r"evaluation\.stop\.judge: got 'gold', takes one of linear"),
        ({"judge": "linear", "patience": 0}, r"online\.evaluation\.stop\.patience: got 0, takes 1 or more"),
        ({"patience": 1}, r"online\.evaluation\.stop\.judge: missing"),
    ):
        with pytest.raises(UserError, match=line):
            online(tmp_path, evaluation={"stop": wrong})
    assert not list(tmp_path.iterdir())


# ---- what is refused


def raises(outputs: Any, prompts: list[str], **columns: Any) -> Any:
    raise RuntimeError("no such\nmodel")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "reward raises": ({"rewards": {"r": raises}}, "reward r: raised RuntimeError: no such model"),
    "judge raises": ({"evaluation": {"judges": {"j": raises}}}, "judge j: raised RuntimeError: no such model"),
    "metric raises": ({"evaluation": {"metrics": {"m": raises}}}, "metric m: raised RuntimeError: no such model"),
    "metric is a number": ({"evaluation": {"metrics": {"m": lambda o, p: 3.0}}}, r"metric m: returned float, takes \{name: number\}"),
    "wrong shape": ({"rewards": {"r": lambda o, p: o}}, r"reward r: returned shape \[12, 2\], takes \[12\]"),
    "not numbers": (
        {"rewards": {"r": lambda o, p: p}},
        r"reward r: returned .* as a score, takes numbers, and NaN or None for a missing one",
    ),
    "infinite": ({"rewards": {"r": lambda o, p: o[:, 0] / 0}}, "reward r: returned an infinite score"),
    "NaN": ({"rewards": {"r": lambda o, p: o[:, 0] * torch.nan}}, "reward r: 8 of 8 scores are NaN"),
    "unknown weight": (
        {"combine": mm.combinations.weighted_sum(weights={"x": 1.0})},
        r"weighted_sum\.weights: got 'x', takes rewards that are there",
    ),
    "no prompts": ({"prompts": []}, r"prompts: got \[\], takes a list"),
    "one prompt": ({"prompts": "a"}, "online.prompts: got 'a', takes list of anything"),
    "no steps": ({"steps": 0}, "steps: got 0, takes 1 or more"),
    "no micro rows": ({"batch": {"micro_rows": 0}}, "online.batch.micro_rows: got 0"),
    "a set of its own": ({"references": {"ema": {"every": 1}}}, "references.ema: not a reference"),
    "never evaluated": ({"evaluation": {"every": 0}}, "evaluation.every: got 0"),
    "unknown evaluation": ({"evaluation": {"prompt": ["a"]}}, "online.evaluation.prompt: unknown key of evaluation; nearest: prompts"),
    "two of one name": ({"evaluation": {"judges": {"linear": raises}}}, "evaluation.judges.linear: a reward has that name too"),
    "sampler's argument": ({"evaluation": {"call": {"eta": 1}}}, "call: got eta, takes nothing"),
    "unknown tracker": (
        {"run": {"trackers": ("tensorbored",)}},
        r"online.run.trackers: got \('tensorbored',\), takes list of 'tensorboard'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_no_folder(tmp_path: Path, name: str) -> None:
    changes, line = BAD[name]
    with pytest.raises(UserError, match=line) as caught:
        online(tmp_path, **changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    online(tmp_path, steps=1)  # the name is free


def test_an_error_later_keeps_what_was_trained(tmp_path: Path) -> None:
    gold = Judge(0.1, 0.2)
    with pytest.raises(UserError, match="judge gold: raised IndexError"):
        online(tmp_path, evaluation={"every": 1, "samples": 2, "judges": {"gold": gold}}, run={"checkpoint_every": 1})
    gold.scores = [0.3] * 6
    run = online(tmp_path, evaluation={"every": 1, "samples": 2, "judges": {"gold": gold}}, resume=True, run={"checkpoint_every": 1})
    assert [row["step"] for row in rows(run.path) if row["phase"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_an_existing_run_is_left_as_it_was(tmp_path: Path) -> None:
    run = online(tmp_path, steps=1)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="exists: resume it"):
        online(tmp_path, rewards={"r": raises})
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_method_is_refused_where_the_policy_cannot_serve_it(tmp_path: Path) -> None:
    from dataclasses import replace

    for changes, line in (
        (
            {"needs": frozenset({Need("logits")})},
            "method: needs logits; this policy gives adjoint, adjoint_size, behaviors, drift, dt, kls, old, refs, score, slope, std",
        ),
        ({"kinds": frozenset({"token"})}, "method: takes steps of kind token; this policy gives transition"),
    ):
        with pytest.raises(UserError, match=line):
            online(tmp_path, method=replace(method(), **changes))
    assert not list(tmp_path.iterdir())


def test_the_summary_says_what_happened(tmp_path: Path) -> None:
    run = online(tmp_path, evaluation={"judges": {"gold": Judge(0.1, 0.2, 0.3)}}, run={"seed": 3, "trackers": ("tensorboard",)})
    summary = json.loads(run.report.path.with_name("summary.json").read_text())
    facts = {"seed": 3, "status": "finished", "steps": 6, "preflight_difference": 0.0, "rewards": ["linear"], "judges": ["gold"]}
    assert {key: summary[key] for key in facts} == facts
    assert (summary["gold_before"], summary["gold_after"]) == (pytest.approx(0.1), pytest.approx(0.3)) and summary["train_seconds"] > 0
    assert summary["kl"] == [row for row in rows(run.path) if row["phase"] == "eval"][-1]["kl"] > 0
    assert run.report.path.read_text().startswith("<!") and arguments(tmp_path)["run"]["name"] == run.path.name


@pytest.mark.parametrize("name", ["inpo", "online_dpo", "rebel"])
def test_pairs_of_own_samples_train_too(name: str, tmp_path: Path) -> None:
    """The best and the worst row of each group; INPO against the policy of the step before."""
    method = {"inpo": {"eta": 0.2}, "online_dpo": {"beta": 0.5}, "rebel": {"eta": 1.0}}[name]
    run = online(tmp_path, method=getattr(mm.methods, name)(**method), steps=20, batch={"group": 8, "prompts": 3}, optimizer={"rate": 0.03})
    evaluations = [row["linear"] for row in rows(run.path) if "linear" in row]
    assert evaluations[-1] > evaluations[0] + 0.2
    assert ("previous" in run.policy.sets.tables()) == (name == "inpo")
