"""A server of rewards that is slow, corrupt and then dead in the middle of a run: right counts, no wrong score; a resume knows both."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter

import pytest

import mmalign as mm
from mmalign.types import UserError
from mmalign.worlds.text import base
from tests.helpers.fake_server import hurried

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
from tests.helpers.reward_server import RewardServer

LETTERS = "aeiou"


def vowels(outputs, prompts):
    return [sum(letter in LETTERS for letter in output) / max(1, len(output)) for output in outputs]


def run(server, folder, *, steps=6, missing="drop", resume=False, failures=1.0):
    """Steps of 8 rows, asked in questions of 4; what the reward answered, with its outputs, in ``seen``."""
    asking = {
        "timeout": 300.0,
        "retries": 1,
        "backoff": 0.0,
        "at_once": 1,
        "failures": failures,
        "quarantine": str(folder / "missing.jsonl"),
    }
    reward = mm.rewards.served(url=server.url, reward="vowels", rows={"most": 4}, asking=asking)
    seen, score = [], reward.score

    def remembered(outputs, prompts, **columns):
        scores = score(outputs, prompts, **columns)
        seen.append((list(outputs), scores))
        return scores

    object.__setattr__(reward, "score", remembered)  # the reward that the run has, with its state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = mm.online(
            mm.policies.transformers(*base.untrained(width=16, layers=1), max_completion=8), mm.worlds.text_prompts(count=8),
            {"vowels": reward}, mm.methods.grpo(beta=0.01), steps=steps, resume=resume,
            batch={"prompts": 2, "group": 4, "missing": missing}, evaluation={"every": 100, "prompts": ["the"], "samples": 2},
            run={"name": "served", "folder": str(folder), "trackers": [], "checkpoint_every": 2},
        )  # fmt: skip
    return done, seen, reward.state


def test_a_server_that_is_slow_corrupt_and_killed(tmp_path):
    server = RewardServer({"vowels": vowels})
    wrong = [
        lambda answer: answer[:-5],  # truncated
        lambda answer: json.dumps({**json.loads(answer), "scores": {"": [9.0] * 3}}).encode(),  # too few
        lambda answer: json.dumps({**json.loads(answer), "scores": {"": [9.0, math.nan, 9.0, 9.0]}}).encode(),
        lambda answer: json.dumps({**json.loads(answer), "scores": [[9.0] * 4]}).encode(),  # of another shape
        lambda answer: "cut",
        lambda answer: (500, b"9.0"),
    ]

    def change(number, answer):  # one question in the evaluation before training, then two a step
        if number > 8:  # steps after the third are corrupt, again and again
            return wrong[number % 6](answer)
        return 1.0 if number == 6 else answer  # slow, once

    server.change = change
    short = [0.2]  # seconds for the first try of that question; all others may take their time
    with hurried(lambda: short.pop() if server.questions == 5 and short else None):
        first, seen, state = run(server, tmp_path, steps=4)
    assert first.summary["status"] == "finished"
    server.kill()
    rows = lambda: [row for row in map(json.loads, (first.path / "metrics.jsonl").read_text().splitlines()) if row["phase"] == "train"]  # noqa: E731
    assert [row.get("missing/vowels", 0) for row in rows()] == [0, 0, 0, 8]
    for outputs, scores in seen:
        for output, score in zip(outputs, scores.tolist(), strict=True):
            assert math.isnan(score) or score == vowels([output], [])[0]
    counts = state.client.counts
    lost = Counter(line["reason"] for line in map(json.loads, (tmp_path / "missing.jsonl").read_text().splitlines()))
    assert counts["missing"] == lost.total() == sum(int(scores.isnan().sum()) for _, scores in seen)
    assert {reason: count for reason, count in counts.items() if reason not in ("asked", "missing")} == lost
    # the server is dead now; a resumed run knows what was counted, and goes on without
    resumed, more, state = run(server, tmp_path, steps=6, resume=True)
    assert [row.get("missing/vowels", 0) for row in rows()] == [0, 0, 0, 8, 8, 8] and resumed.summary["steps"] == 6
    assert all(scores.isnan().all() for _, scores in more)
    assert state.client.counts["asked"] >= 2 + 6 * 8 and state.weights == "none"  # of all steps


@pytest.mark.parametrize(
    ("missing", "failures", "says"), [("stop", 1.0, "8 of 8 scores are NaN"), ("drop", 0.5, r"missing \(.*asking\.failures")]
)
def test_a_dead_server_stops_the_run_where_the_config_says_so(tmp_path, missing, failures, says):
    server = RewardServer({"vowels": vowels})
    server.change = lambda number, answer: answer if number <= 3 else (503, b"")
    with pytest.raises(UserError, match=says):
        run(server, tmp_path, missing=missing, failures=failures)
    server.kill()
