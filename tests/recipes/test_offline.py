from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.policies.settings import Schedule
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError
from tests.helpers import small_run

METHOD = mm.methods.flow_dpo(beta=100.0)


@pytest.fixture
def pairs():
    rng = torch.Generator().manual_seed(0)
    bright, dark = (torch.rand(12, 1, 8, 8, generator=rng) * 0.4 + shift for shift in (0.6, 0.0))
    return [Pair(f"a {number % 3}", bright[number], dark[number], 1.0, f"pair {number}") for number in range(12)]


def brightness(outputs, prompts, **_):
    return outputs.flatten(1).mean(1)


def policy():
    from mmalign.worlds.digits.base import untrained

    return mm.policies.forward(mm.policies.diffusers(untrained(), device="cpu", schedule=Schedule(steps=4)))


def offline(tmp_path, records, **changes):
    given = {
        "steps": 4,
        "batch": {"records": 4, "micro_rows": 4},
        "optimizer": {"rate": 3e-3, "ema": 0.5},
        "evaluation": {"every": 2, "samples": 4, "judges": {"brightness": brightness}},
        "run": {"name": "run", "folder": str(tmp_path), "checkpoint_every": 2, "trackers": ()},
    }
    for key, value in changes.items():
        given[key] = {**given[key], **value} if key in ("batch", "optimizer", "evaluation", "run") else value
    given["optimizer"] = mm.adamw(**given["optimizer"])
    return mm.offline(given.pop("policy", None) or policy(), records, given.pop("method", None) or METHOD, **given)


def log(run):
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_preferences_move_the_samples(tmp_path, pairs):
    run = offline(tmp_path, pairs, steps=20, evaluation={"every": 20, "samples": 8}, optimizer={"ema": None})
    assert run.summary["brightness_after"] > run.summary["brightness_before"] + 0.1
    assert run.summary["preflight_difference"] == 0.0
    rows = [row for row in log(run) if row["phase"] == "train"]
    assert rows[0]["margin"] == 0 and rows[0]["accuracy"] == 0.5 and rows[0]["loss"] == pytest.approx(math.log(2))
    assert rows[-1]["margin"] > 0 and rows[-1]["accuracy"] > 0.5 and rows[0]["known"] == 1.0
    assert [row["kl"] for row in log(run) if row["phase"] == "eval"][1:] == [None]  # a bound has no KL
    page = run.report.path.read_text()
    assert all(f"<h3>{title}</h3>" in page for title in ("Loss", "Margin", "Accuracy", "Log-ratios of chosen and rejected outputs"))


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path, pairs):
    whole = offline(tmp_path / "whole", pairs)
    offline(tmp_path / "parts", pairs, steps=2)
    resumed = offline(tmp_path / "parts", pairs, resume=True)
    assert log(resumed) == log(whole)
    for name, table in whole.policy.sets.tables().items():
        for key, value in table.items():
            assert torch.equal(value, resumed.policy.sets.tables()[name][key]), (name, key)


def test_the_split_into_micro_batches_changes_nothing(tmp_path, pairs):
    results = [
        offline(tmp_path / str(rows), pairs, steps=2, evaluation={"every": 4, "samples": 1}, batch={"micro_rows": rows}) for rows in (2, 8)
    ]
    first, second = ([row for row in log(run) if row["phase"] == "train"] for run in results)
    for a, b in zip(first, second, strict=True):
        assert all(a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5) for key in a if isinstance(a[key], float))


def test_pairs_without_a_label_are_left_out_and_refused_where_there_are_no_others(tmp_path, pairs):
    missing = [pair._replace(strength=math.nan) for pair in pairs]
    with pytest.raises(UserError, match=r"records: the first .* rows say nothing that this method learns from"):
        offline(tmp_path, missing, steps=1)
    half = [pair._replace(strength=math.nan if number % 2 else 1.0) for number, pair in enumerate(pairs)]
    rows = log(offline(tmp_path / "half", half, steps=1, batch={"records": 12}))
    assert rows[1]["known"] == 0.5 and rows[1]["loss"] == pytest.approx(math.log(2))  # the mean is over pairs that are known


def test_broken_records_are_named_once(tmp_path, pairs):
    from mmalign.data.pairs import Listed

    class Partly(Listed):
        def stream(self, *, seed, start=0):
            for number, pair in enumerate(super().stream(seed=seed, start=start)):
                if number == 5:
                    self.broken["pair x"] = "truncated"
                yield pair

    run = offline(tmp_path, Partly(pairs))
    assert [json.loads(line) for line in (run.path / "broken.jsonl").read_text().splitlines()] == [{"id": "pair x", "why": "truncated"}]
    assert [row["broken"] for row in log(run) if row["phase"] == "train"] == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("end", ['{"id": "pair y", "wh', "[]\n", "\xff\n", '{"id": 3, "why": "x"}\n'])
def test_a_torn_list_of_broken_records_stops_no_resume(tmp_path, pairs, end):
    from mmalign.data.pairs import Listed

    class Broken(Listed):
        def stream(self, *, seed, start=0):
            self.broken |= {"pair x": "truncated", "pair \udcffy": "no\nline"}
            yield from super().stream(seed=seed, start=start)

    run = offline(tmp_path, Broken(pairs), steps=2)
    file = run.path / "broken.jsonl"
    named = file.read_text()
    file.write_text(named.splitlines()[0] + "\n" + end, encoding="latin-1")
    offline(tmp_path, Broken(pairs), resume=True)
    assert file.read_text() == named and len(named.splitlines()) == 2


def test_mistakes_are_found_before_anything_is_trained(tmp_path, pairs):
    def refused(match, records=pairs, **changes):
        with pytest.raises(UserError, match=match):
            offline(tmp_path, records, **changes)
        assert not (tmp_path / "run").exists()

    refused("got none, takes at least one", [])
    refused("takes a records.Pair, Thumb or Ranking", ["a"])
    refused(r"different sizes, \[1, 8, 8\].*records.size", [*pairs[:3], pairs[3]._replace(second=torch.rand(1, 4, 4))])
    refused("batch.micro_rows: got 0, takes 1 or more", batch={"micro_rows": 0})
    refused("Pair and Thumb in one stream", [*pairs[:3], Thumb("a", pairs[0].first, 1.0)] * 4, batch={"records": 8})
    refused("got thumbs, one output each; this method compares the rows of a pair", [Thumb("a", pairs[0].first, 1.0)] * 8)
    refused(r"records\[0\]: got label 1.5, takes 0..1", [Thumb("a", pairs[0].first, 1.5)])
    refused(r"records\[0\]: got 1 scores, takes one for each of 2", [Ranking("a", (pairs[0].first, pairs[0].second), (1.0,))])
    refused("x: a list of one output", [Ranking("a", (pairs[0].first,), (1.0,), "x")] * 8, method=replace(METHOD, unit="group"))
    refused("steps: got 0", steps=0)
    refused("needs old", method=mm.methods.grpo(beta=0))
    refused("takes steps of kind token, transition; this policy gives bound", method=mm.methods.simpo())
    refused("evaluation.often", evaluation={"often": 3})


def test_every_kind_of_record_says_what_a_method_can_read(pairs):
    from mmalign.objectives.feedback import comparisons
    from mmalign.recipes._records import rows_of

    one, two = pairs[0]._replace(strength=0.8, scores=(3.0, 1.0)), pairs[1]._replace(strength=math.nan)
    _, outputs, feedback = rows_of([one._replace(annotator="ann"), two], METHOD)
    assert feedback.ids == ["pair 0", "pair 0", "pair 1", "pair 1"] and feedback.annotators == ["ann", "ann", "", ""]
    assert len(outputs) == 4 and feedback.group.tolist() == [0, 0, 1, 1] and feedback.pairs.tolist() == [[0, 1], [2, 3]]
    assert feedback.rewards[:2].tolist() == [3.0, 1.0] and feedback.rewards[2:].isnan().all()
    assert comparisons.labels(feedback)[:2].tolist() == pytest.approx([0.8, 0.2])
    listed = replace(METHOD, unit="group")
    assert rows_of([one._replace(scores=(math.nan, math.nan))], listed)[2].rewards.tolist() == pytest.approx([0.8, 0.2])
    _, _, feedback = rows_of([Thumb("a", one.first, 1.0), Thumb("b", one.second, math.nan)], replace(METHOD, unit="row"))
    assert feedback.group.tolist() == [0, 1] and feedback.labels[0] == 1 and feedback.labels[1].isnan()
    ranking = Ranking("a", (one.first, one.second, two.first), (0.5, math.nan, 2.0))
    _, outputs, feedback = rows_of([ranking, ranking], listed)
    assert len(outputs) == 6 and feedback.pairs is None and feedback.rewards[3:].nan_to_num(-1).tolist() == [0.5, -1.0, 2.0]
    assert rows_of([ranking, ranking], METHOD)[2].pairs.tolist() == [[2, 0], [5, 3]]


def test_a_ranking_trains_by_its_best_and_its_worst(tmp_path, pairs):
    lists = [Ranking(pair.prompt, (pair.second, pair.first), (0.0, 1.0), pair.id) for pair in pairs]
    as_lists, as_pairs = (offline(tmp_path / name, given, steps=2) for name, given in (("lists", lists), ("pairs", pairs)))
    for first, second in zip(log(as_lists), log(as_pairs), strict=True):
        assert {key: first[key] for key in ("loss", "margin") if key in first} == pytest.approx(
            {key: second[key] for key in ("loss", "margin") if key in second}, rel=1e-4, abs=1e-6
        )


def test_a_policy_that_no_longer_is_its_reference_is_refused(tmp_path, pairs):
    moved = policy()
    with torch.no_grad():
        moved.parameters()["patch_out.bias"].add_(0.5)
    with pytest.raises(UserError, match="differently from its reference before any update"):
        offline(tmp_path, pairs, policy=moved)
    assert not (tmp_path / "run").exists()


def test_pairs_of_images_and_a_policy_of_sampled_steps_are_told_what_to_write(tmp_path):
    line = r"policy: learns from steps that it samples itself, .*; takes policy: \{use: forward, of: \{use: diffusers, \.\.\.\}\}"
    with pytest.raises(UserError, match=line):
        mm.offline(small_run.policy(), [], mm.methods.dpo(beta=0.1), run={"name": "run", "folder": str(tmp_path)})
    assert not (tmp_path / "run").exists()
