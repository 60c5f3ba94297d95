"""Gradient entanglement: the paper's rule by hand for one pair, and in more than 95 % of steps of a run that is counted out."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair
from mmalign.training.evaluations.entanglement import Entanglement
from mmalign.training.optimizers import sgd
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import UserError
from tests.worlds.test_text import tiny

PAIRS = [
    ("a b c", "a b d"),
    ("e a", "f b"),
    ("c c", "d a"),
    ("b e", "b f"),
    ("a e c", "a f c"),
    ("d", "c d"),
    ("a b c a b", "a b c a c"),
    ("c a", "c a a"),
]


def learning(rate, method):
    policy = mm.policies.transformers(*tiny(), max_completion=8)
    learner = Learner(policy, method, sgd(rate=rate, max_norm=1e9), steps=10)
    return policy, learner


def experience(policy, learner, pairs):
    texts = [text for pair in pairs for text in pair]
    group = torch.arange(len(pairs)).repeat_interleave(2)
    rollout = policy.encode(["a b"] * len(texts), texts, group, torch.Generator().manual_seed(0))
    learner.remember(rollout, 64)
    signal = torch.tensor([1.0, -1.0] * len(pairs), dtype=torch.float64).unsqueeze(1)
    return Experience(rollout, signal, torch.arange(len(texts)))


def test_of_one_pair_it_is_the_rule_of_the_paper():
    """d_w |g_w|^2 - d_l <g_w, g_l> with d_w = d_l = beta sigmoid(-beta m), from gradients that autograd gives."""
    policy, learner = learning(1e-4, mm.methods.dpo(beta=0.3))
    rows = experience(policy, learner, PAIRS[:1])
    with Entanglement(learner, 1).watched(0, [rows], 64) as found:
        before = [p.detach().clone() for p in policy.parameters().values()]
        steps = policy.steps(rows.rollout, torch.arange(2))
        log_probs = torch.where(steps.mask, steps.log_probs, 0.0).sum(1)
        g_w, g_l = (torch.cat([part.flatten() for part in torch.autograd.grad(one, list(policy.parameters().values()), retain_graph=True)])
                    for one in log_probs)  # fmt: skip
        learner.update([rows], micro_rows=64, step=0)
    d = 0.3 * 0.5  # the margin is 0 before the first update
    w, loser, wl = float(g_w @ g_w), float(g_l @ g_l), float(g_w @ g_l)
    names = {"chosen_norm": w**0.5, "rejected_norm": loser**0.5, "inner": wl, "cosine": wl / (w * loser) ** 0.5, "chosen_pull": d * w}
    names |= {"chosen_push": -d * wl, "rejected_pull": d * wl, "rejected_push": -d * loser}
    for name, value in names.items():
        assert found[f"gradients/{name}"] == pytest.approx(value, rel=1e-3), name
    rate = 1e-4  # of plain gradient descent: the change is the rate times the sum, to first order
    assert found["gradients/chosen_change"] == pytest.approx(rate * (d * w - d * wl), rel=0.05)
    assert found["gradients/rejected_change"] == pytest.approx(rate * (d * wl - d * loser), rel=0.05)
    assert found["gradients/rule"] == 1.0 and not torch.equal(before[0], next(iter(policy.parameters().values())).detach())


def test_a_measurement_changes_nothing_and_splits_as_it_likes():
    numbers = []
    for every, micro_rows in ((None, 64), (1, 64), (1, 2)):
        policy, learner = learning(0.05, mm.methods.ipo())
        rows, watch = experience(policy, learner, PAIRS), Entanglement(learner, every)
        for step in range(2):
            with watch.watched(step, [rows], micro_rows) as found:
                learner.update([rows], micro_rows=64, step=step)
        numbers.append((torch.cat([p.detach().flatten() for p in policy.parameters().values()]), found))
    assert torch.equal(numbers[0][0], numbers[1][0]) and torch.equal(numbers[0][0], numbers[2][0]) and not numbers[0][1]
    assert numbers[1][1].keys() == numbers[2][1].keys()
    assert all(math.isclose(value, numbers[2][1][name], rel_tol=1e-3, abs_tol=1e-6) for name, value in numbers[1][1].items())


def test_a_step_that_is_not_due_or_silent_is_not_measured():
    policy, learner = learning(0.05, mm.methods.dpo())
    rows = experience(policy, learner, PAIRS[:2])
    silent = Experience(rows.rollout, torch.zeros_like(rows.signal), rows.rows)
    for step, which in ((1, rows), (2, silent)):
        with Entanglement(learner, 2).watched(step, [which], 64) as found:
            pass
        assert found == {}
    learner.shards = object()
    with pytest.raises(UserError, match=r"run.gradients: got devices.place: fsdp2"):
        Entanglement(learner, 2)
    Entanglement(learner, None)


@pytest.mark.parametrize("name", ["dpo", "simpo", "slic"])
def test_the_rule_foretells_the_signs_of_more_than_95_percent_of_steps(name, tmp_path):
    """On pairs that share most of their words, so that some chosen answers fall: gradient descent, every step measured."""
    records = [Pair("a b", better, worse, 1.0, f"p{number}") for number, (better, worse) in enumerate(PAIRS)]
    run = mm.offline(
        mm.policies.transformers(*tiny(), max_completion=8), records, getattr(mm.methods, name)(), steps=60, batch={"records": 1},
        optimizer=mm.sgd(rate=0.02), evaluation={"every": 100, "samples": 1},
        run={"name": name, "folder": str(tmp_path), "trackers": (), "gradients": 1, "checkpoint_every": 1000},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    rules = [row["gradients/rule"] for row in rows if "gradients/rule" in row]
    assert len(rules) >= 50 and sum(rules) / len(rules) > 0.95
    measured = [row for row in rows if "gradients/rule" in row]
    signs = [[row[f"gradients/{side}_pull"] + row[f"gradients/{side}_push"] for side in ("chosen", "rejected")] for row in measured]
    assert any(chosen < 0 or rejected > 0 for chosen, rejected in signs)  # which margins and losses do not show
