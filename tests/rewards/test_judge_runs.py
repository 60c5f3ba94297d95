"""A judge server that is slow, corrupt and then dead in the middle of a run: the run ends, with the right counts and no wrong score."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError
from mmalign.worlds.text import base
from tests.helpers.fake_server import FakeServer, hurried, likely

LETTERS = "aeiou"


def true_score(text: str) -> float:
    """Of the two digits that the fake judge hesitates between."""
    share = sum(letter in LETTERS for letter in text) / max(1, len(text))
    return 2 * (1 - share) + 5 * share


def digits(body):
    response = body["messages"][0]["content"].split("<response>\n")[1].split("\n</response>")[0]
    share = sum(letter in LETTERS for letter in response) / max(1, len(response))
    return likely(**({"2": 1 - share, "5": share} if 0 < share < 1 else {"2": 1.0} if share == 0 else {"5": 1.0}))


def lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def policy():
    return mm.policies.transformers(*base.untrained(width=16, layers=1), max_completion=8)


def run(server, folder, *, settings=None, **more):
    """Five steps of 8 rows; the reward's own answers, as they come, in ``seen``."""
    judged = mm.rewards.judge(
        server={
            "url": server.url,
            "model": "m",
            "timeout": 300.0,
            "retries": 1,
            "backoff": 0.0,
            "at_once": 2,
            "failures": 1,
            **(settings or {}),
        }
    )
    seen = []

    def remembered(outputs, prompts, **columns):
        scores = judged(outputs, prompts, **columns)
        seen.append((list(outputs), scores))
        return scores

    done = mm.online(
        policy(),
        mm.worlds.text_prompts(count=8),
        {"judge": remembered},
        mm.methods.grpo(beta=0.01),
        steps=5,
        evaluation={"every": 100, "prompts": ["the"], "samples": 2, "columns": 1},
        run={"name": "judged", "folder": str(folder), "trackers": [], "checkpoint_every": 5},
        **{**more, "batch": {"prompts": 2, "group": 4, **more.get("batch", {})}},
    )
    return done, seen


def test_a_server_that_is_slow_corrupt_and_killed_ends_the_run_with_the_right_counts(tmp_path):
    server = FakeServer(digits)
    wrong = [b"<html>", b'{"choices": []}', (503, b""), "close", b'{"choices": [{"message": {"content": "4"}}]}', (400, b"too long")]
    died = 31

    def misbehave(number):  # two rows of the evaluation first, then 8 a step
        if number == 12:
            return 1.0  # once; it is asked again
        return None if number <= 10 else "close" if number > died else wrong[number % len(wrong)] if number % 3 else None

    server.misbehave = misbehave
    quarantine = tmp_path / "missing.jsonl"
    with warnings.catch_warnings(), hurried(lambda: 0.5 if len(server.requests) >= 10 else None):
        warnings.simplefilter("ignore")
        done, seen = run(server, tmp_path, batch={"missing": "drop"}, settings={"quarantine": str(quarantine)})
    server.kill()
    assert done.summary["status"] == "finished" and done.summary["steps"] == 5
    known = 0
    for outputs, scores in seen:
        for output, score in zip(outputs, scores.tolist(), strict=True):
            if not math.isnan(score):
                known += 1
                assert score == pytest.approx(true_score(output), abs=1e-6)
    missing = sum(int(scores.isnan().sum()) for _, scores in seen)
    assert known >= 12 and missing >= 20
    rows = [row for row in lines(done.path / "metrics.jsonl") if row["phase"] == "train"]
    assert len(rows) == 5
    for row, (_, scores) in zip(rows, seen[1:6], strict=True):
        held = scores[~scores.isnan()]
        assert row.get("missing/judge", 0.0) == int(scores.isnan().sum())
        assert row["reward/judge"] == pytest.approx(float(held.mean())) if len(held) else row["reward/judge"] is None
    assert rows[0].get("missing/judge", 0.0) == 0 and rows[-1]["missing/judge"] == 8
    put_aside = lines(quarantine)
    assert len(put_aside) == missing and all(line["reward"] == "judge" and line["reason"] for line in put_aside)
    lost = Counter(output for outputs, scores in seen for output, score in zip(outputs, scores.tolist(), strict=True) if math.isnan(score))
    assert Counter(line["output"] for line in put_aside) == lost
    trained = done.policy.parameters()
    assert all(bool(torch.isfinite(value).all()) for value in trained.values())


@pytest.mark.parametrize(
    ("more", "says"), [({}, "reward judge: 8 of 8 scores are NaN"), ({"batch": {"missing": "drop"}}, "answers are missing .*failures")]
)
def test_a_dead_server_stops_the_run_where_the_config_says_so(tmp_path, more, says):
    server = FakeServer(digits)
    server.misbehave = lambda number: "close" if number > 2 + 8 else None
    with warnings.catch_warnings(), pytest.raises(UserError, match=says):
        warnings.simplefilter("ignore")
        run(server, tmp_path, settings={"failures": 0.5}, **more)
    server.kill()


def test_an_oracle_on_a_server_trains(tmp_path):
    def prefers(body):
        first, second = (
            body["messages"][0]["content"].split(f"<response {letter}>\n")[1].split(f"\n</response {letter}>")[0] for letter in "AB"
        )
        p = 1 / (1 + math.exp(true_score(second) - true_score(first)))
        return likely(A=p, B=1 - p)

    server = FakeServer(prefers)
    done = mm.online(
        policy(),
        mm.worlds.text_prompts(count=8),
        {"length": mm.rewards.length(100)},
        mm.methods.online_dpo(),
        oracle=mm.rewards.judge_pairs(server={"url": server.url, "model": "m"}),
        steps=2,
        evaluation={"every": 100, "prompts": ["the"], "samples": 1, "columns": 1},
        run={"name": "pairs", "folder": str(tmp_path), "trackers": [], "checkpoint_every": 5},
        batch={"prompts": 2, "group": 3},
    )
    server.kill()
    assert done.summary["status"] == "finished" and len(server.requests) == 2 * 2 * 3 * 2


def test_a_config_with_judges_is_rehearsed_without_their_server(tmp_path, monkeypatch):
    from mmalign.commands import rehearse

    monkeypatch.chdir(tmp_path)
    server = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    node = {
        "use": "online", "policy": {"use": "transformers", "model": {"use": "text"}, "max_completion": 8},
        "method": {"use": "online_dpo"}, "prompts": {"use": "text_prompts", "count": 8}, "steps": 2, "run": {"trackers": []},
        "rewards": {"judge": {"use": "judge", "server": server}, "short": {"use": "length", "most": 4}},
        "oracle": {"use": "judge_pairs", "server": server},
        "combine": {"use": "weighted_sum", "weights": {"judge": 1.0, "short": 0.5}, "transforms": {"judge": {"use": "z_score"}}},
    }  # fmt: skip
    phases = rehearse(node)
    assert not phases[-1].failed, phases[-1].what
