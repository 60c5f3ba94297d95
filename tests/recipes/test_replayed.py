"""Rows of earlier rollouts that a run goes on to learn from: what is kept scores as it did, what is learned, and exact resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.config import build, load
from mmalign.distributed.team import ALONE
from mmalign.needs import Q1, V1, V2, of_set
from mmalign.recipes._replayed import Replayed, replayed_in
from mmalign.runs import checkpoint
from mmalign.training.optimizers import adamw
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback, Rollout, UserError
from tests.oracles.critics import turns_wanted
from tests.oracles.tables import table

PROMPTS = ["13 * 14 + 87", "2 * 3 + 4", "11 * 12 + 13"]


def talking(**more: Any) -> Any:
    tools = mm.environments.tools({"calculate": mm.environments.calculator(operations=1)})
    turns = mm.Turns(environment=tools, limit=3)
    return mm.policies.transformers(mm.worlds.calculator(), max_completion=24, heads=["q1", "q2", "v1", "v2"], turns=turns, **more)


def buffer(policy: Any, **how: Any) -> tuple[Replayed, Rollout]:
    learner = Learner(policy, mm.methods.archer(**how), adamw(rate=1e-2), steps=4)
    learner.begin(0)
    replayed = replayed_in(learner, PROMPTS, lambda make, most: make(4), seed=0)
    rollout = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0))
    assert replayed is not None
    return replayed, rollout


def told(rewards: torch.Tensor) -> Feedback:
    from mmalign.training.journal import hashed

    return Feedback(rewards, torch.arange(12) // 4, prompts=[hashed([PROMPTS[row // 4]]) for row in range(12)])


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_kept_rows_are_scored_as_they_were_and_their_targets_are_of_the_copies(lora: Any) -> None:
    policy = talking() if lora is None else talking(lora=lora)
    replayed, rollout = buffer(policy, replay=12, gamma=0.5)
    for number, p in enumerate(policy.parameters().values()):  # the copies are what training began with
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    rewards = torch.arange(12).double()
    replayed.take_in(rollout, told(rewards))
    replayed.next(3, 1)
    again = replayed.beside.experience
    assert again is not None
    rows, columns = torch.arange(12), torch.arange(rollout.mask.shape[1])
    needs = frozenset({Q1, V1, V2, of_set(V1, "target"), of_set(V2, "target")})
    before = policy.steps(rollout, rows, columns, needs=needs)
    with policy.using("target"):
        copies = policy.steps(rollout, rows, columns, needs=frozenset({V1, V2})).terms
    after = policy.steps(again.rollout, rows, needs=needs)
    lasts = [int(mask.nonzero().max()) for mask in again.rollout.mask]
    order = [int(again.signal[place, last, 0]) for place, last in enumerate(lasts)]  # behind its last turn a row is worth its reward
    assert sorted(order) == list(range(12)) and order != list(range(12))
    wide, several = after.log_probs.shape[1], 0
    for place, row in enumerate(order):
        mask = rollout.mask[row]
        assert torch.equal(after.mask[place], mask[:wide]) and not bool(mask[wide:].any())
        torch.testing.assert_close(after.log_probs[place], before.log_probs[row, :wide], atol=1e-5, rtol=0)
        for name in ("q1", "v1"):
            torch.testing.assert_close(after.terms[name][place], before.terms[name][row, :wide], atol=1e-5, rtol=0)
        starts = [step for step in range(wide) if mask[step] and not (step and mask[step - 1])]
        ends = [step for step in range(wide) if mask[step] and not (step + 1 < wide and mask[step + 1])]
        several += len(starts) > 1
        for k, name in enumerate(("v1", "v2")):
            torch.testing.assert_close(before.terms[f"{name}:target"][row], copies[name][row], atol=1e-6, rtol=0)
            wanted = [0.5 * float(copies[name][row, start]) for start in starts[1:]] + [float(rewards[row])]
            assert again.signal[place, ends, k].tolist() == pytest.approx(wanted, abs=1e-5)
            assert again.signal[place, :, 2].nonzero().flatten().tolist() == ends
    assert several >= 3  # rows of more than one turn
    assert (before.terms["v1"] - copies["v1"]).abs().max() > 1e-3


def test_the_loss_of_earlier_rows_is_the_oracle_s() -> None:
    for gamma, value in ((0.95, 1.0), (0.5, 0.3)):
        at = table("token", 1)
        method = mm.methods.archer(gamma=gamma, value=value).replay.method
        loss = method.loss(at.steps(method.needs), method.signal(at.feedback(method.reads)))
        got = (method.weigh(at.mask) * loss.values).sum()
        wanted = turns_wanted(at, gamma=gamma)
        by_hand = sum(value * (getattr(at, name)[row, step] - target) ** 2 / 2 for (name, row, step), target in wanted.items())
        torch.testing.assert_close(got, by_hand / at.mask.sum(), rtol=1e-12, atol=0)  # type: ignore[operator]
        errors = [float((getattr(at, name)[row, step] - target) ** 2) for (name, row, step), target in wanted.items()]
        assert float(loss.metrics["q_error"]) == pytest.approx(sum(errors) / len(errors))


def test_the_newest_rows_are_kept_and_drawn_by_seed_step_and_update() -> None:
    policy = talking()
    replayed, rollout = buffer(policy, replay=5, capacity=20)
    for first in (0.0, 100.0):
        replayed.take_in(rollout, told(first + torch.arange(12).double()))
    assert replayed.rows["rewards"].tolist() == [*range(4, 12), *range(100, 112)]
    assert replayed.rows["prompt"].tolist() == [row // 4 for row in [*range(4, 12), *range(12)]]

    def drawn(step: int, update: int) -> list[list[float]]:
        replayed.next(step, update)
        assert replayed.beside.experience is not None and len(replayed.beside.experience.rows) == 5
        return replayed.beside.experience.signal.amax((1, 2)).tolist()

    assert drawn(2, 0) == drawn(2, 0) and drawn(2, 0) != drawn(2, 1) != drawn(3, 0)
    bare = SimpleNamespace(method=mm.methods.archer(), policy=SimpleNamespace(gives=frozenset({"q1"})))
    with pytest.raises(UserError, match="which this policy does not keep; takes replay: 0"):
        replayed_in(bare, PROMPTS, lambda make, most: make(1), seed=0)  # type: ignore[arg-type]
    assert replayed_in(SimpleNamespace(method=mm.methods.grpo()), PROMPTS, None, seed=0) is None  # type: ignore[arg-type]


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path) -> None:
    small = ["batch.prompts=4", "batch.micro_rows=8", "method.replay=6", "method.capacity=7", "method.critic_first=1", "evaluation={}"]
    settings = [*small, "policy.max_completion=24", "run.checkpoint_every=1", f"run.folder={tmp_path}"]
    straight = build(load("calculator/archer", [*settings, "steps=4", "run.name=straight"]))
    build(load("calculator/archer", [*settings, "steps=2", "run.name=parts"]))
    parts = build(load("calculator/archer", [*settings, "steps=4", "run.name=parts"]) | {"resume": True})
    tables = [
        checkpoint.load_parts(run.path / "checkpoints" / "step_000004", lambda _, stored: stored.read(), ALONE)[0]
        for run in (straight, parts)
    ]
    assert tables[0].keys() == tables[1].keys() >= {"trained", "target", "replayed"}
    for group in tables[0]:
        for name, value in tables[0][group].items():
            assert torch.equal(value, tables[1][group][name]), (group, name)
    assert len(tables[0]["replayed"]["rewards"]) == 7
    log = [json.loads(line) for line in (straight.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["replay/q_error"] > 0 for row in log if row["phase"] == "train")
